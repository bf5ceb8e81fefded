"""A lock file that one process at a time holds, on one host or many, with `flock` or without.

A process makes a file of its own with what `LockOwner` says, and links it to the path of the lock, which one
process can. A stale lock is replaced by a rename, under a second lock whose name holds the identity of the
stale one: of several processes that find it, one gets that second lock first, and those that get it later see
another lock in the place.
"""

import errno
import fcntl
import glob
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.locks import judgement
from hpcphotoz.locks.judgement import NO_FLOCK, SeenLock, Verdict, judge, look_at, refusal_of, watch
from hpcphotoz.locks.owner import LockOwner
from hpcphotoz.output import say

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TAKEOVER_S = 10.0  # no takeover by another process lasts so long
_WAITING_S = 0.1  # between two looks at a lock that is waited for
_ABANDONED_NS = 24 * 3600 * 10**9


@contextmanager
def lock_file(path: Path, refusal: str, advice: str, wait_s: float = 0) -> Iterator["HeldLock"]:
    """Context manager that holds a lock file, made for the purpose and removed at the end.

    A thread gives a sign of life every `judgement.REFRESH_S` seconds. The lock of a process that has ended is
    taken over, which is said in one line. Whether a process of another host has ended can take up to
    `judgement.STALE_S` seconds to find out where `flock` does not tell; one that lives is seen to after one
    interval.

    Args:
        path: the lock file, in an existing folder.
        refusal: what the user is told where another process holds the lock; its owner is added.
        advice: what the user can do about it.
        wait_s: seconds for which a lock that another process holds is waited for.

    Raises:
        BadInput: another process holds it, or the file cannot be made or locked.
    """
    try:
        held = _acquire(path, refusal, advice, wait_s)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        held.start()
        yield held
    finally:
        held.release()


class HeldLock:
    """A lock that this process holds, or is about to.

    Args:
        path: the lock file.

    Raises:
        BadInput: the file cannot be locked.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        name = f"{path.name}.{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}.tmp"
        self._temporary = path.with_name(name)
        self._number = self._open(self._temporary)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.problem: str | None = None  # that another process has taken the lock over

    def _open(self, path: Path) -> int:
        """Make a file with a holder's `flock`, where there is such a thing, and name the owner in it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        number = os.open(path, flags, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                os.close(number)
                path.unlink(missing_ok=True)
                raise BadInput(f"{self._path}: cannot be locked: {error.strerror}") from None
        self.owner = LockOwner.of_this_process(self._path, os.fstat(number).st_ino)
        self._named = self._name_owner(number)
        return number

    def _name_owner(self, number: int) -> bool:
        """Write the owner into the file; False: the disk is full, and the lock holds without."""
        text = self.owner.json.encode()
        try:
            if os.pwrite(number, text, 0) == len(text):
                return True
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
        with suppress(OSError):
            os.ftruncate(number, 0)
        return False

    def link(self) -> bool:
        """Put the file in the place of the lock; False: there is one."""
        try:
            os.link(self._temporary, self._path, follow_symlinks=False)
        except OSError as error:
            if judgement.is_at(self._path, self._number):  # the answer of a file server got lost
                return True
            if error.errno == errno.EEXIST:
                return False
            if error.errno not in _NO_LINKS:
                raise
            return self._make()
        return True

    def _make(self) -> bool:
        """Make the lock file itself, where there are no links."""
        try:
            number = self._open(self._path)
        except FileExistsError:
            return False
        os.close(self._number)
        self._number = number
        return True

    def replace(self, stale: SeenLock, refusal: str, advice: str) -> bool:
        """Put the file in the place of a stale lock; False: another process was first."""
        guard = self._path.with_name(f"{self._path.name}.{stale.identity}.taken")
        try:
            taken = _acquire(guard, refusal, advice, wait_s=0)
        except BadInput:
            return False
        try:
            now = look_at(self._path)
            if now is None or now.identity != stale.identity or now.flocked:
                return False
            os.replace(self._temporary, self._path)
            return True
        finally:
            taken.release()

    @property
    def now_ns(self) -> int:
        """Time of the file system, as it sets that of a file."""
        os.utime(self._number)
        return os.fstat(self._number).st_mtime_ns

    def discard_temporary(self) -> None:
        """Remove the file's temporary name."""
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def start(self) -> None:
        """Give signs of life from now on."""
        thread = threading.Thread(target=self._refresh, name="lock", daemon=True)
        thread.start()
        self._thread = thread

    def _refresh(self) -> None:
        while not self._ended.wait(judgement.REFRESH_S):
            try:
                os.utime(self._number)
                self._named = self._named or self._name_owner(self._number)
                now = look_at(self._path)
                if now is None or self._is_own(now):
                    continue
            except OSError:  # a file server that is away: the next may succeed
                continue
            self.problem = (
                f"{self._path.parent}: {now.text}, has taken over the lock of this process, which gave no "
                f"sign of life for {judgement.STALE_S:.0f} s: this one ends without writing more"
            )

    def _is_own(self, seen: SeenLock) -> bool:
        """Whether a lock is this one; some file systems give a file another inode at each look."""
        return seen.identity == self.owner.token or judgement.is_at(self._path, self._number)

    def release(self) -> None:
        """Remove the lock file, if it is still that of this process."""
        self._ended.set()
        if self._thread:
            self._thread.join()
        with suppress(OSError):  # what is left is stale as soon as this process has ended
            now = look_at(self._path)
            if now and self._is_own(now):
                self._path.unlink(missing_ok=True)  # while it is locked
        os.close(self._number)


def _acquire(path: Path, refusal: str, advice: str, wait_s: float) -> HeldLock:
    own = HeldLock(path)
    try:
        _place(own, path, refusal, advice, wait_s)
        _drop_abandoned(path, own.now_ns)
    except BaseException:
        own.release()
        raise
    finally:
        own.discard_temporary()
    return own


def _place(own: HeldLock, path: Path, refusal: str, advice: str, wait_s: float) -> None:
    """Put the file of a lock in its place; raises BadInput where a process holds the one there."""
    until = refused_at = None
    while not own.link():
        seen = look_at(path)
        if seen is None:
            continue
        verdict, why = judge(path, seen)
        if verdict is Verdict.UNKNOWN:
            verdict, why = watch(path, seen, own.now_ns, partial(_say_waiting, path, seen))
        if verdict is Verdict.HELD:
            if refused_at is None:
                refused_at = time.monotonic() + wait_s
                if wait_s:
                    _say(path, f"locked by {seen.text}: waiting up to {wait_s:.0f} s for its end")
            if time.monotonic() >= refused_at:
                raise BadInput(refusal_of(seen, refusal, advice))
            time.sleep(_WAITING_S)
        if verdict is Verdict.STALE:
            if own.replace(seen, refusal, advice):
                _say(path, f"took over the lock of {seen.text}: {why}")
                return
            until = until or time.monotonic() + _TAKEOVER_S
            if time.monotonic() > until:
                raise BadInput(refusal_of(seen, refusal, advice))
            time.sleep(0.02)  # another process is taking it over


def _say_waiting(path: Path, seen: SeenLock, wait_s: float) -> None:
    _say(path, f"locked by {seen.text}: waiting up to {wait_s:.0f} s for a sign of life")


def _say(path: Path, text: str) -> None:
    if not path.name.endswith(".taken"):  # of a takeover
        say(f"hpcphotoz: {path.parent}: {text}", sys.stderr)


def _drop_abandoned(path: Path, now_ns: int) -> None:
    """Remove the files of processes that were killed while they took the lock at `path`."""
    for suffix in ("tmp", "taken"):
        for other in path.parent.glob(f"{glob.escape(path.name)}.*.{suffix}"):
            with suppress(OSError):
                seen = look_at(other)
                dead = seen and seen.owner and seen.owner.is_here and not seen.owner.runs
                if seen and not seen.flocked and (dead or now_ns - seen.mtime_ns > _ABANDONED_NS):
                    other.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> BadInput:
    return BadInput(
        f"{path.parent}: the folder cannot be written: {error.strerror} (its lock file {path.name})"
    )
