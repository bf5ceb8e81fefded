"""Which commit of the source this package runs from."""

import subprocess
from pathlib import Path

import hpcphotoz

RECORD = "COMMIT"  # beside a snapshot of the package, which is no repository


def commit() -> str | None:
    """Commit of the source tree, with "-dirty" where files differ from it; None: installed without one."""
    folder = Path(hpcphotoz.__file__).resolve().parent
    record = folder.parent / RECORD
    if record.is_file():
        return record.read_text().strip() or None
    # An installation inside some project's folder must not report that project's commit: is this tracked?
    if not _git(folder, "ls-files", "__init__.py"):
        return None
    head = _git(folder, "rev-parse", "HEAD")
    dirty = head and _git(folder, "status", "--porcelain", "-uno")
    return f"{head}-dirty" if dirty else head or None


def _git(folder: Path, *words: str) -> str:
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
