"""Writes files whole or not at all, and checks output paths before a computation."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcphotoz.errors import BadInput


@contextmanager
def atomic_write(path: Path, owner: str = "") -> Iterator[Path]:
    """Context manager that yields a temporary path, and on success renames it to `path`.

    The file is flushed to the disk before. On an error, or when the process is killed, what was at `path`
    before is still there.

    Args:
        path: file to write.
        owner: who writes; the temporary name holds it.

    Raises:
        BadInput: `path` is a folder or a device.
        OSError: with `filename` set, also where the disk is full.
    """
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: is a folder or a device, not a file: choose another name")
    temporary = path.with_name(f"{path.name}.{f'{owner}.' if owner else ''}{secrets.token_hex(8)}.tmp")
    try:  # before the file is there: a signal can end the command at any line
        try:
            # With the mode of any new file: to read the umask, one would have to change it for all threads.
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        except OSError as error:
            error.filename = str(path)  # the name that the user gave
            raise
        yield temporary
        flush_file(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:  # a failed write gives no name
            error.filename = str(path)
        raise
    fsync_folder(path.parent)


def check_output_file(path: Path) -> None:
    """Refuse a path that cannot be written, before the computation of its content; create nothing.

    Raises:
        BadInput: `path` is a folder or a device, or its folder is missing or may not be written.
    """
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: is a folder or a device, not a file: choose another name")
    if not path.parent.is_dir():
        raise BadInput(f"{path}: no such folder: {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f"{path}: {_why_not_writable(path.parent)}")


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before the computation; create nothing.

    Raises:
        BadInput: it, or the nearest parent that exists, is a file or may not be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"{folder}: cannot make the folder: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK | (os.R_OK if there == folder else 0)):
        make = "" if there == folder else "cannot make the folder: "
        raise BadInput(f"{folder}: {make}{_why_not_writable(there)}")


@contextmanager
def making_folder(folder: Path) -> Iterator[None]:
    """Context manager that makes a folder; after an error, what it made and is still empty is removed.

    Raises:
        BadInput: it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot make the folder: {error.strerror}") from None
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_file(path: Path) -> None:
    """Flush what was written to a file to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries: without it a renamed file could be lost in a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why_not_writable(folder: Path) -> str:
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"the file system of {folder} is mounted read-only"
    return f"no permission to write in {folder}"
