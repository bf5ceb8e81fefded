"""A lock file that one process at a time holds; the system drops the lock when the process ends."""

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.output import say

# Errors of a file system without locks, such as Lustre without -o flock.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def lock_file(path: Path, refusal: str) -> Iterator[None]:
    """Context manager that holds a lock file, created for the purpose and removed at the end.

    A process that was killed leaves the file but not the lock. On a file system without locks (some Lustre
    mounts) no lock is held, and a warning is printed.

    Args:
        path: the lock file, in an existing folder.
        refusal: message for the user where another process holds the lock.

    Raises:
        BadInput: another process holds it, or the file cannot be made or locked.
    """
    number = _acquire(path, refusal)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: `_acquire` sees that the file has gone
        os.close(number)


def _acquire(path: Path, refusal: str) -> int:
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            why = f"{error.strerror} (its lock file {path.name})"
            raise BadInput(f"{path.parent}: the folder cannot be written: {why}") from None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            raise BadInput(refusal) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(number)
                raise BadInput(f"{path}: cannot be locked: {error.strerror}") from None
            no_locks = f"no locks on this file system ({error.strerror}): let no other process write there"
            say(f"hpcphotoz: warning: {path.parent}: {no_locks}", sys.stderr)
            return number
        if _is_at(path, number):
            return number
        os.close(number)  # its holder removed it before we locked it: try the new file


def _is_at(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file; False where there is none, or no locks on its file system."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(number)
    return False
