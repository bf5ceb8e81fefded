"""Checks of the shared folder that two nodes make together: speed, locks, renames and HDF5."""

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import write_text
from hpcphotoz.launch.doctor.facts import FileFacts
from hpcphotoz.locks.judgement import NO_FLOCK

POLL_S = 0.1
_SPEED_BYTES, _SPEED_FILES = 64 << 20, 100
_REPLACED, _LENGTH = 100, 4096  # times that a file is replaced; its bytes
_SEEN_WITHIN_S = 45.0  # NFS may keep an old entry for up to a minute


class Meeting:
    """Lets the ranks of the job wait for each other by files in the shared folder.

    Args:
        folder: shared by all.
        rank, size: this rank, of how many.
        limit_s: seconds of every wait.
        poll: called at every look.
    """

    def __init__(
        self, folder: Path, rank: int, size: int, limit_s: float, poll: Callable[[], None] = lambda: None
    ) -> None:
        self._folder, self._rank, self._size = folder, rank, size
        self._limit_s, self._poll = limit_s, poll

    def arrive(self, name: str) -> None:
        """Say that this rank has come to a point."""
        (self._folder / f"at {name} {self._rank}").touch()

    def others(self, name: str) -> bool:
        """Whether all ranks have come to a point."""
        self._poll()
        # A listing is asked of the server; a look at one name may be answered from the cache of NFS.
        return sum(each.startswith(f"at {name} ") for each in os.listdir(self._folder)) >= self._size

    def wait(self, name: str) -> None:
        """Come to a point and wait for the others; raises TimeoutError after the limit."""
        self.arrive(name)
        end = time.monotonic() + self._limit_s
        while not self.others(name):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"another node's file did not appear in {self._folder} within {self._limit_s:g} s"
                )
            time.sleep(POLL_S)


def check_files(folder: Path, rank: int, size: int, meeting: Meeting) -> FileFacts:
    """Make every check with the next rank; a check that fails is told in `errors`.

    Args:
        folder: shared by all ranks.
        rank, size: this rank, of how many.
        meeting: where the ranks wait for each other.
    """
    facts: dict[str, Any] = {"errors": {}}
    try:
        meeting.wait("start")
    except (OSError, TimeoutError) as error:
        return FileFacts(errors={"shared folder": str(error)})
    for name, (check, points) in _CHECKS.items():
        if size == 1 and name != "file speed":
            break
        try:
            facts |= check(folder, rank, (rank + 1) % size, meeting)
        except Exception as error:  # also what h5py raises: each is a finding, and the other checks go on
            with suppress(OSError):
                for point in points:  # the other node does not wait for this one
                    meeting.arrive(point)
            facts["errors"][name] = " ".join(str(error).split())[:300] or type(error).__name__
    return FileFacts(**facts)


def _speed(folder: Path, rank: int, other: int, meeting: Meeting) -> dict[str, float]:
    block = os.urandom(1 << 20)  # a file system that compresses gains nothing
    began = time.monotonic()
    with (folder / f"speed {rank}").open("wb", buffering=0) as file:
        for _ in range(_SPEED_BYTES >> 20):
            file.write(block)
        os.fsync(file.fileno())
    written = time.monotonic() - began
    began = time.monotonic()
    for number in range(_SPEED_FILES):
        small = folder / f"small {rank} {number}"
        small.write_bytes(b"0")
        small.unlink()
    files = time.monotonic() - began
    meeting.wait("speed")
    began, count = time.monotonic(), 0
    with (folder / f"speed {other}").open("rb", buffering=0) as file:
        while read := file.read(1 << 20):
            count += len(read)
    read_s = time.monotonic() - began
    if count != _SPEED_BYTES:
        raise OSError(f"the other node's file has {count} bytes of {_SPEED_BYTES}")
    speeds = {"write_mb_s": _SPEED_BYTES / 1e6 / written, "read_mb_s": _SPEED_BYTES / 1e6 / read_s}
    return {**speeds, "files_s": _SPEED_FILES / files}


def _locking(folder: Path, rank: int, other: int, meeting: Meeting) -> dict[str, str]:
    """Rank 0 holds a lock, the others try to take it."""
    answer, error = "seen", None
    number = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            if rank == 0:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            meeting.wait("locked")
            if rank:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                answer = "not seen"
        except BlockingIOError:
            answer = "seen"
        except OSError as found:
            answer, error = "none", None if found.errno in NO_FLOCK else found
            meeting.arrive("locked")
        meeting.wait("tried")
    finally:
        os.close(number)
    if error:
        raise error
    return {"locking": answer}


def _rename(folder: Path, rank: int, other: int, meeting: Meeting) -> dict[str, float]:
    """Each rank replaces its file again and again, while the other reads it."""
    own, theirs = folder / f"renamed {rank}", folder / f"renamed {other}"
    write_text(own, _content(0))
    meeting.wait("renamed")
    missing = torn = 0
    last, seen = _content(_REPLACED), False
    for number in range(1, _REPLACED + 1):
        write_text(own, _content(number))
        text = _read(theirs)
        missing, torn = missing + (text is None), torn + (text is not None and not _whole(text))
    meeting.arrive("replaced")
    end = time.monotonic() + _SEEN_WITHIN_S
    while not meeting.others("replaced") and time.monotonic() < end:
        time.sleep(POLL_S)
    began = time.monotonic()
    while not seen and time.monotonic() < began + _SEEN_WITHIN_S:
        text = _read(theirs)
        seen = text == last
        if not seen:
            time.sleep(POLL_S)
    after = time.monotonic() - began if seen else -1.0
    return {"missing": missing, "torn": torn, "seen_after_s": after}


def _content(number: int) -> str:
    return f"{number:08d}" * (_LENGTH // 8)


def _whole(text: str) -> bool:
    return len(text) == _LENGTH and text == text[:8] * (_LENGTH // 8)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _hdf5(folder: Path, rank: int, other: int, meeting: Meeting) -> dict[str, float]:
    """Each rank writes a small shard as datasets are written, and reads the other's."""
    import h5py
    import numpy as np

    from hpcphotoz.atomic import atomic_write
    from hpcphotoz.data.hdf5 import open_file

    with atomic_write(folder / f"shard {rank}.hdf5") as temporary, h5py.File(temporary, "w") as file:
        file["images"] = np.full((64, 5, 32, 32), rank + 1, np.float32)
    meeting.wait("shards")
    with open_file(folder / f"shard {other}.hdf5") as file:
        images = file["images"][:]
    if images.shape != (64, 5, 32, 32) or not (images == other + 1).all():
        raise OSError("its pixels are not those that were written")
    with suppress(FileNotFoundError):
        (folder / f"shard {other}.hdf5").unlink()
    return {}


# The checks, and the points at which the ranks wait for each other in them.
_CHECKS: dict[str, tuple[Callable[[Path, int, int, Meeting], Mapping[str, Any]], tuple[str, ...]]] = {
    "file speed": (_speed, ("speed",)),
    "file locking": (_locking, ("locked", "tried")),
    "rename": (_rename, ("renamed", "replaced")),
    "hdf5": (_hdf5, ("shards",)),
}
