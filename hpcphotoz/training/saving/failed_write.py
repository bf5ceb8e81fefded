"""Why a file of a run could not be written, in words: what is needed, what is free, and what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcphotoz.errors import BadInput

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_NETWORKS = (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ESHUTDOWN)
_FEW_INODES = 32
_NO_STORAGE = (errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, *_OF_NETWORKS)


def message(path: Path, error: OSError, resumes: str, what: str = "", needed: int | None = None) -> str:
    """One line about a write that failed.

    Args:
        path: the file that was not written; its folder may be missing.
        error: what the system said.
        resumes: what the same command resumes from.
        what: what was being done, such as "cannot save the checkpoint".
        needed: bytes of the file; None: unknown, and a few.
    """
    figures = ", ".join(filter(None, [_needed(needed), *_free(path.parent, error)]))
    said = f"{error.strerror or error}{f' ({figures})' if figures else ''}"
    start = f"{path}: {what}: " if what else f"{path}: "
    return f"{start}{said}: {_advice(error, needed is not None)}; the same command resumes from {resumes}"


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """A block whose OSError about a file of a run becomes BadInput with `message`."""
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
        raise BadInput(message(path, error, "the newest checkpoint")) from None


def _needed(needed: int | None) -> str:
    return "" if needed is None else f"{needed / 1e6:.1f} MB are needed"


def _free(folder: Path, error: OSError) -> list[str]:
    """What is free of the disk, where that is what the error is about."""
    if error.errno == errno.EDQUOT:  # of which the figures of the disk say nothing
        return ["the quota of the user, group or project is used up"]
    if error.errno in _NO_STORAGE:
        return []
    try:
        disk = os.statvfs(folder)
    except OSError:
        return []
    free = f"{disk.f_bavail * disk.f_frsize / 1e6:.1f} MB of the disk are free"
    # Not only none: temporary files of other threads come and go.
    scarce = error.errno == errno.ENOSPC and disk.f_files and disk.f_favail < _FEW_INODES
    return [free, f"inodes left for other files: {disk.f_favail}"] if scarce else [free]


def _advice(error: OSError, of_checkpoint: bool) -> str:
    if error.errno in _NO_STORAGE:
        return (
            "the storage fails, not the run: see the log of the system, or ask those who run the file system"
        )
    if error.errno == errno.EFBIG:
        return "allow larger files (ulimit -f)"
    return "make room" + (", or choose a smaller run.keep_checkpoints (at least 2)" if of_checkpoint else "")
