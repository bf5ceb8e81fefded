"""Unfinished files of checkpoints: their names say who writes them, so that no other process removes them."""

import logging
import os
import re
import socket
import time
from pathlib import Path

ABANDONED_S = 24 * 3600.0  # no write stands still for so long
_NAME = re.compile(r".+?\.(?:pt|safetensors)\.(?P<host>.+)-(?P<pid>\d+)\.[^.]*\.tmp")
_log = logging.getLogger(__name__)


def owner() -> str:
    """Host and number of this process, as they stand in the names of its unfinished files."""
    return f"{socket.gethostname()}-{os.getpid()}"


def drop_abandoned(folder: Path) -> bool:
    """Remove unfinished files whose writer is certain to have ended; returns whether there were any.

    A lock on the run folder is no proof: on some file systems locks do not reach other hosts, and a job that
    was thought dead may still be writing. A file is removed if it was begun by a process of this host that
    does not exist any more, or if nobody has written to it for a day.
    """
    found = False
    for path in folder.glob("*.tmp"):
        if _is_abandoned(path):
            _log.info("%s: removed: the process that wrote it has ended", path)
            path.unlink(missing_ok=True)
            found = True
    return found


def _is_abandoned(path: Path) -> bool:
    name = _NAME.fullmatch(path.name)
    if name and name["host"] == socket.gethostname():
        return not _exists(int(name["pid"]))
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
