"""Records what a result was made with: the commit of the source, and each start and end of a run."""

import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import hpcphotoz
from hpcphotoz.atomic import write_text
from hpcphotoz.world import World

_FILE = "provenance.json"  # of a run folder
RECORD = "COMMIT"  # file beside a snapshot of the package, which is not a repository
_PACKAGES = ("torch", "numpy", "h5py", "xxhash", "triton")
_log = logging.getLogger(__name__)


def commit() -> str | None:
    """Commit of the source tree, with "-dirty" if files differ from it; None: not a checkout."""
    folder = Path(hpcphotoz.__file__).resolve().parent
    record = folder.parent / RECORD
    if record.is_file():
        return record.read_text().strip() or None
    # An installation inside another project's folder must not report that project's commit.
    if not _git(folder, "ls-files", "__init__.py"):
        return None
    head = _git(folder, "rev-parse", "HEAD")
    dirty = head and _git(folder, "status", "--porcelain", "-uno")
    return f"{head}-dirty" if dirty else head or None


def record_start(run: Path, world: World, facts: dict[str, Any]) -> None:
    """Add a start of a run to its provenance.json: versions, commit, host, command, ranks, and `facts`.

    A damaged record is kept as provenance.json.damaged, with a warning, and a new one begins.

    Raises:
        OSError: the record cannot be read or written.
    """
    starts = _read(run)
    if starts is None:
        kept = run / f"{_FILE}.damaged"
        os.replace(run / _FILE, kept)
        _log.warning("%s: damaged, kept as %s: the record of starts begins anew", run / _FILE, kept.name)
        starts = []
    starts.append(
        {
            "time": _now(),
            "hpcphotoz": hpcphotoz.__version__,
            "commit": commit(),
            "python": platform.python_version(),
            **{name: version_of(name) for name in _PACKAGES},
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": sys.argv,
            "launcher": world.launcher,
            "world_size": world.size,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            **facts,
        }
    )
    _write(run, starts)


def record_end(run: Path, outcome: str, reason: str | None, **facts: Any) -> None:
    """Add to the last start of a run how it ended, if it was that of this process.

    A failure to write is logged, and hides no other.

    Args:
        run: run folder.
        outcome: "finished", "stopped" or "failed".
        reason: why it stopped or failed.
        facts: further facts, such as the step.
    """
    starts = read_starts(run)
    if not starts or _writer(starts[-1]) not in ((socket.gethostname(), os.getpid()), None):
        return
    starts[-1]["end"] = {"time": _now(), "outcome": outcome, "reason": reason, **facts}
    try:
        _write(run, starts)
    except OSError as error:
        _log.warning("%s: cannot record the end of the run: %s", run, error)


def datasets_of(run: Path) -> list[str]:
    """Folders of the datasets on which a run was last started; empty where its provenance.json is lost.

    What is no text there, in a record that somebody has changed, is left out.
    """
    start = (read_starts(run) or [{}])[-1]
    entries = start.get("datasets", [{"folder": start.get("data")}])
    entries = entries if isinstance(entries, list) else []
    found = [one.get("folder") for one in entries if isinstance(one, dict)]
    return [folder for folder in found if isinstance(folder, str)]


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The recorded starts of a run, in order; none if there is no record or it is damaged."""
    try:
        return _read(run) or []
    except OSError:
        return []


def is_damaged(run: Path) -> bool:
    """Whether a run has a record that cannot be understood, such as after a power failure.

    Raises:
        OSError: it cannot be read.
    """
    return _read(run) is None


def _read(run: Path) -> list[dict[str, Any]] | None:
    """The recorded starts of a run; None: the record is damaged."""
    try:
        starts = json.loads((run / _FILE).read_bytes())["starts"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return starts if isinstance(starts, list) and all(isinstance(start, dict) for start in starts) else None


def _writer(start: dict[str, Any]) -> tuple[str, int] | None:
    """Host and number of the process that wrote a start; None: of an earlier version."""
    return (start["host"], start["pid"]) if "pid" in start else None


def _write(run: Path, starts: list[dict[str, Any]]) -> None:
    write_text(run / _FILE, json.dumps({"starts": starts}, indent=1) + "\n")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def version_of(package: str) -> str | None:
    """Version of an installed package; None: it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str:
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
