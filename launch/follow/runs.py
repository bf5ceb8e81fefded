"""Which runs there are: in a folder, and in the user's list.

The list, `${XDG_STATE_HOME:-~/.local/state}/hpcphotoz/runs.jsonl`, has the folders of runs, and no more.
"""

import json
import logging
import os
import time
from pathlib import Path

from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.submissions import read_submissions, sweep_entries
from hpcphotoz.locks.judgement import look_at
from hpcphotoz.provenance import is_damaged, read_starts

_LONGEST = 256 * 1024  # bytes, after which the oldest entries go
_KEPT = 500  # runs
_log = logging.getLogger(__name__)


def runs_of(folder: Path) -> list[Path]:
    """The folder if it is a run, or the runs that are folders in it, by name.

    Raises:
        BadInput: it is neither.
    """
    if _is_run(folder):
        return [folder]
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}: want a run folder") from None
    names = list(sweep_entries(folder)) or names  # in the order of the sweep
    runs = [folder / name for name in names if _is_run(folder / name)]
    if not runs:
        raise BadInput(f"{folder}: no training has begun in this folder: want a run folder")
    return runs


def _is_run(folder: Path) -> bool:
    """Whether a training has begun in a folder, or begins, or is submitted."""
    try:
        begun = is_damaged(folder) or bool(read_starts(folder)) or look_at(folder / "logs" / "lock")
    except OSError:
        return False
    return bool(begun or read_submissions(folder))


def registry_file() -> Path:
    """Where the list is; the folder may not exist.

    Raises:
        RuntimeError: the user has no home folder.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification ignores a relative path.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local/state") / "hpcphotoz" / "runs.jsonl"


def register_run(run: Path) -> None:
    """Add a run to the list. A list that cannot be written is a warning, and fails no run.

    A line is appended whole, whoever else appends. Of lines that are added while another process shortens the
    file, which is rare, one may be lost.
    """
    line = json.dumps({"run": os.path.abspath(run), "time": time.time()}) + "\n"
    try:
        path = registry_file()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(number, line.encode())
            size = os.fstat(number).st_size
        finally:
            os.close(number)
        if size > _LONGEST:
            kept = [json.dumps(entry) for entry in reversed(_entries(path)[:_KEPT])]
            write_text(path, "\n".join(kept) + "\n")
    except (OSError, RuntimeError) as error:
        _log.warning("`hpcphotoz status` will not list this run: cannot write the list of runs: %s", error)


def registered_runs(limit: int | None) -> list[Path]:
    """Run folders of the list that still exist, the newest first; at most `limit`; of a sweep its runs."""
    try:
        entries = _entries(registry_file())
    except (OSError, RuntimeError):
        return []
    found: list[Path] = []
    for entry in entries:
        if limit is not None and len(found) >= limit:
            break
        try:
            found += runs_of(Path(entry["run"]))
        except BadInput:  # gone
            continue
    return found[:limit]


def _entries(path: Path) -> list[dict[str, str]]:
    """Entries, the newest of each run, the newest first; lines that cannot be read are left out."""
    found: dict[str, dict[str, str]] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            name = os.fsencode(entry["run"])  # refuses what no folder's name can have, but for NUL
            if os.path.isabs(name) and b"\0" not in name:
                found.setdefault(entry["run"], entry)
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())
