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
    """Add a start of a run to its provenance.json: versions, commit, host, command, ranks, and `facts`."""
    starts = read_starts(run)
    starts.append(
        {
            "time": _now(),
            "hpcphotoz": hpcphotoz.__version__,
            "commit": commit(),
            "python": platform.python_version(),
            **{name: version_of(name) for name in _PACKAGES},
            "host": socket.gethostname(),
            "command": sys.argv,
            "launcher": world.launcher,
            "world_size": world.size,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            **facts,
        }
    )
    _write(run, starts)


def record_end(run: Path, outcome: str, reason: str | None, **facts: Any) -> None:
    """Add to the last start of a run how it ended; a failure to write is logged, and hides no other.

    Args:
        run: run folder.
        outcome: "finished", "stopped" or "failed".
        reason: why it stopped or failed.
        facts: further facts, such as the step.
    """
    starts = read_starts(run)
    if not starts:
        return
    starts[-1]["end"] = {"time": _now(), "outcome": outcome, "reason": reason, **facts}
    try:
        _write(run, starts)
    except OSError as error:
        _log.warning("%s: cannot record the end of the run: %s", run, error)


def datasets_of(run: Path) -> list[str]:
    """Folders of the datasets on which a run was last started; empty where its provenance.json is lost."""
    start = (read_starts(run) or [{}])[-1]
    if "datasets" in start:
        return [entry["folder"] for entry in start["datasets"]]
    return [start["data"]] if "data" in start else []


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The recorded starts of a run, in order; none if there is no record or it is damaged."""
    try:
        return list(json.loads((run / _FILE).read_text())["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


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
