"""Copies of files on the disk of this node, for one run: made, checked against their checksums, and removed.

Every start of a run has a folder of its own, BASE/hpcphotoz-<uid>/stage-<random>, beside a lock that its
process holds: two runs on one node do not meet. A folder whose process was killed is removed by the next.
"""

import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.locks.judgement import is_held
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.node.folders import own_folder

_PIECE = 1 << 23  # bytes between two looks for a stop
_PREFIX = "stage-"
_INSTEAD = "name another folder (--stage FOLDER), or train without --stage"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileToCopy:
    """A file of known size and content, and its path within the folder of copies."""

    source: Path
    target: str  # relative
    bytes: int
    sha256: str  # "": not known, so not compared


@contextmanager
def staging_folder(base: Path, need_bytes: int) -> Iterator[Path]:
    """Context manager that yields a new empty folder on this node's disk, and removes it at the end.

    Folders that killed processes of this user have left there are removed first.

    Args:
        base: an existing folder, such as /tmp.
        need_bytes: size of what is to be copied there.

    Raises:
        BadInput: there is too little room, or the folder cannot be made.
    """
    if not base.is_dir():
        raise BadInput(f"--stage {base}: no such folder on {os.uname().nodename}: {_INSTEAD}")
    try:
        own = own_folder(base)
        _remove_left_over(own)
        _check_room(base, need_bytes)
    except OSError as error:
        raise BadInput(f"--stage {base}: cannot be used: {error.strerror}: {_INSTEAD}") from None
    folder = own / f"{_PREFIX}{secrets.token_hex(8)}"
    with lock_file(_lock_of(folder), f"{folder}: another process uses it", "start again"):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            _remove(folder)


def copy_files(files: Sequence[FileToCopy], folder: Path, keep_damaged: bool) -> Iterator[int]:
    """Copy files into `folder`, each under another name until it is whole; yields the bytes of every piece.

    Args:
        files: what to copy.
        folder: of `staging_folder`.
        keep_damaged: whether a file is copied as it is that differs from its checksum, and one that is
            missing or of another size is left out; otherwise it is an error.

    Raises:
        BadInput: names the file, or says that the disk is full.
    """
    for file in files:
        try:
            yield from _copy(file, folder / file.target, keep_damaged)
        except _Unusable as problem:
            if not keep_damaged:
                raise BadInput(f"{file.source}: {problem}: copy it again") from None
            _log.warning("%s: %s: not copied to %s", file.source, problem, folder)


class _Unusable(Exception):
    """A file that cannot be read as the manifest describes it."""


def _copy(file: FileToCopy, target: Path, keep_damaged: bool) -> Iterator[int]:
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        source = os.open(file.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror}") from None
    with open(source, "rb", buffering=0) as reader:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode) or status.st_size != file.bytes:
            raise _Unusable(f"no plain file of {file.bytes} bytes, as the manifest says")
        digest, piece, left = hashlib.sha256(), memoryview(bytearray(_PIECE)), file.bytes
        with _write(temporary) as out:
            while left:
                try:
                    n = reader.readinto(piece[: min(left, _PIECE)])
                except OSError as error:
                    raise _Unusable(f"cannot be read: {error.strerror}") from None
                if not n:
                    raise _Unusable("became shorter while it was read")
                digest.update(piece[:n])
                _write_all(out, piece[:n], target)
                left -= n
                yield n
    if file.sha256 and digest.hexdigest() != file.sha256 and not keep_damaged:
        raise _Unusable("its content is not that of the manifest's checksum (sha256)")
    os.replace(temporary, target)


@contextmanager
def _write(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield number
    finally:
        os.close(number)


def _write_all(number: int, piece: memoryview, target: Path) -> None:
    while len(piece):
        try:
            piece = piece[os.write(number, piece) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BadInput(f"{target.parents[1]}: the disk became full: {_INSTEAD}") from None
            error.filename = str(target)
            raise


def _check_room(base: Path, need_bytes: int) -> None:
    status = os.statvfs(base)
    free = status.f_bavail * status.f_frsize
    if free < need_bytes:
        raise BadInput(
            f"--stage: the dataset needs {_gigabytes(need_bytes)}, {base} on {os.uname().nodename} has "
            f"{_gigabytes(free)} free: {_INSTEAD}"
        )


def _remove_left_over(own: Path) -> None:
    """Remove the folders, and the locks, of processes that have ended."""
    for path in own.glob(f"{_PREFIX}*"):
        folder = path.with_suffix("")
        if path.suffix not in ("", ".lock") or is_held(_lock_of(folder)):
            continue
        if folder.is_dir():
            _log.info("%s: removed: it was left by a process that has ended", folder)
            _remove(folder)
        with suppress(FileNotFoundError):
            _lock_of(folder).unlink()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.warning("%s: cannot be removed: remove it", folder)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
