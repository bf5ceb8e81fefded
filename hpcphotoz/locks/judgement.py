"""Whether the holder of a lock file that is there still lives, also where `flock` does not reach it."""

import enum
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.locks.owner import LockOwner

REFRESH_S = 10.0  # between two signs of life of a holder: it sets the time of its file
STALE_S = 60.0  # without one, by the clock of the file system
_BEING_MADE_S = 1.0  # for which the file of a new lock may be empty, where the system has no links
_POLL_S = 0.25
# Errors of a file system without locks, such as Lustre without -o flock.
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LONGEST = 65536  # bytes of a lock's file


class Verdict(enum.Enum):
    """What is known of a lock file."""

    HELD = "held"
    STALE = "stale"
    UNKNOWN = "unknown"  # its holder is on another host: only time tells
    CHANGED = "changed"  # another lock, or none, is in its place now


@dataclass(frozen=True)
class SeenLock:
    """A lock file as it was at one moment."""

    owner: LockOwner | None  # None: it does not say, such as one of an earlier version
    flocked: bool | None  # whether a process is seen to hold it; None: no `flock` on this file system
    mtime_ns: int  # its holder's last sign of life
    inode: int

    @property
    def identity(self) -> str:
        """Tells this lock from others at the same path, in characters for a file's name."""
        return self.owner.token if self.owner else f"{self.inode}-{self.mtime_ns}"

    @property
    def text(self) -> str:
        """Its holder in words."""
        return self.owner.text if self.owner else "a process of an earlier version"


def look_at(path: Path) -> SeenLock | None:
    """The lock file at a path; None: there is none, or it has just been removed.

    Raises:
        OSError: it cannot be read.
    """
    try:
        # A network file system compares its cache with the server when a file is opened.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        flocked = _is_flocked(number)
        owner, status = LockOwner.parse(os.pread(number, _LONGEST, 0)), os.fstat(number)
        if not flocked and not is_at(path, number):
            return None
        return SeenLock(owner, flocked, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed by another host
            return None
        raise
    finally:
        os.close(number)


def _is_flocked(number: int) -> bool | None:
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return False


def is_at(path: Path, number: int) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(number))
    except FileNotFoundError:
        return False


def judge(path: Path, seen: SeenLock) -> tuple[Verdict, str]:
    """What a look tells at once, and why.

    A `flock` that is seen proves a holder. One that is not seen proves nothing: the file system may have
    none, or keep them within a host (Lustre with localflock, NFS with local_lock). The number and start of a
    process of this machine decide; a file that was copied with its folder names another path and inode.
    """
    owner = seen.owner
    if seen.flocked:
        return Verdict.HELD, "it is locked"
    if owner is None:
        return Verdict.UNKNOWN, "nobody holds it"
    if owner.path != os.path.realpath(path) and owner.inode not in (seen.inode, None):
        return Verdict.STALE, f"it is a copy of {owner.path}"
    if owner.is_here:
        return (
            (Verdict.HELD, "that process runs") if owner.runs else (Verdict.STALE, "that process has ended")
        )
    return Verdict.UNKNOWN, "that process gave no sign of life"


def watch(path: Path, seen: SeenLock, now_ns: int, waiting: Callable[[float], None]) -> tuple[Verdict, str]:
    """Wait for a sign of life of a holder that only time can tell of; HELD, STALE or CHANGED, and why.

    The lock must have had no sign of life for `STALE_S`, by the clock of the file system, and have had none
    for two intervals while this process looked, by no clock but its own: hosts whose clocks differ may share
    a file system that takes theirs.

    Args:
        path, seen: the lock file, for which `judge` gave UNKNOWN.
        now_ns: time of a file in the same folder that has just been touched.
        waiting: called once with the seconds that this may take.
    """
    age = (now_ns - seen.mtime_ns) / 1e9
    wait = min(max(2 * REFRESH_S, STALE_S - age), STALE_S)
    if seen.owner is None and seen.flocked is False:
        wait = _BEING_MADE_S
    else:
        waiting(wait)
    until = time.monotonic() + wait
    while True:
        now = look_at(path)
        same = now is not None and (now.identity == seen.identity or now.inode == seen.inode)
        if now is None or not same:
            return Verdict.CHANGED, "another lock is in its place"
        if now.flocked or now.mtime_ns != seen.mtime_ns:
            return Verdict.HELD, "that process gives signs of life"
        left = until - time.monotonic()
        if left <= 0:
            return Verdict.STALE, f"no sign of life for {max(age, 0) + wait:.0f} s" if seen.owner else "old"
        time.sleep(min(_POLL_S, left))


def is_held(path: Path) -> bool:
    """Whether a lock file has a holder that lives; False also where it cannot be read.

    The answer comes at once, except for a folder that may not be written while the holder is on another host:
    then it takes up to two intervals of `REFRESH_S`.
    """
    try:
        seen = look_at(path)
        if seen is None:
            return False
        verdict = judge(path, seen)[0]
        if verdict is not Verdict.UNKNOWN:
            return verdict is Verdict.HELD
        if seen.owner is None and seen.flocked is False:
            return False
        now_ns = _clock_ns(path.parent)
        if now_ns is not None:
            return now_ns - seen.mtime_ns < STALE_S * 1e9
        return watch(path, seen, seen.mtime_ns + int(STALE_S * 1e9), lambda _: None)[0] is not Verdict.STALE
    except OSError:
        return False


def owner_of(path: Path) -> LockOwner | None:
    """The holder that a lock file names; None: there is no file, or it names none."""
    try:
        seen = look_at(path)
    except OSError:
        return None
    return seen.owner if seen else None


def _clock_ns(folder: Path) -> int | None:
    """Time of the file system of a folder, never of this host; None: the folder may not be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def refuse_held(path: Path, refusal: str, advice: str) -> None:
    """Refuse a folder whose lock file has a holder that is seen to live; a doubtful one passes.

    Raises:
        BadInput: as `lock.lock_file`.
    """
    try:
        seen = look_at(path)
    except OSError:
        return  # `lock_file` says why
    if seen and judge(path, seen)[0] is Verdict.HELD:
        raise BadInput(refusal_of(seen, refusal, advice))


def refusal_of(seen: SeenLock, refusal: str, advice: str) -> str:
    """The message that a lock is held, with its holder where the file tells it."""
    return f"{refusal} ({seen.text}): {advice}" if seen.owner else f"{refusal}: {advice}"
