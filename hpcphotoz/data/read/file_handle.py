"""Reads files by `preadv`, with retries where a network file system fails for a moment."""

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hpcphotoz.errors import BadInput

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_TRIES = 6
_FIRST_WAIT_S = 0.1  # doubled each time: 3 s in all
_TRANSIENT_ERRNOS = (errno.EIO, errno.ESTALE)  # from a network file system whose server is restarting


class FileHandle:
    """A file open for reading; it is opened again when a network file system has lost the handle."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = with_retries(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)

    def read(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill the views in order from byte `offset` of the file on.

        Raises:
            BadInput: the file ends too early, or an error persists after several tries.
        """
        want = sum(len(view) for view in views)
        got = self._preadv(views, offset)
        while got != want:
            # The kernel may return less than asked near 2 GiB or on a signal.
            if got == 0 or not (views := _unfilled(views, got)):
                raise BadInput(f"{self._path}: ends at byte {offset}: truncated while in use, copy it again")
            want, offset = want - got, offset + got
            got = self._preadv(views, offset)

    def __del__(self) -> None:
        if (number := getattr(self, "_number", None)) is not None:
            os.close(number)

    def _preadv(self, views: Sequence[memoryview], offset: int) -> int:
        return with_retries(lambda: os.preadv(self._number, views, offset), self._path, self._reopen)

    def _reopen(self) -> None:
        # The number stays the same, so that other threads in the middle of a read are not disturbed.
        fresh = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(fresh, self._number)
        os.close(fresh)


def with_retries(work: Callable[[], _T], path: Path, again: Callable[[], None] | None = None) -> _T:
    """Call `work` and return its result; try again where a network file system fails for a moment.

    Args:
        work: reads the file.
        path: the file, for the message.
        again: called before each further try.

    Raises:
        BadInput: the error persists for about 3 s, or is of another kind.
    """
    for attempt in range(_TRIES):
        try:
            if attempt and again is not None:
                again()
            return work()
        except OSError as error:
            if error.errno not in _TRANSIENT_ERRNOS or attempt == _TRIES - 1:
                tries = f" ({attempt + 1} tries)" if attempt else ""
                raise BadInput(f"{path}: cannot be read: {error.strerror}{tries}") from None
            _log.warning("%s: %s: trying again", path, error.strerror)
            time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError("unreachable")


def _unfilled(views: Sequence[memoryview], done: int) -> list[memoryview]:
    left = []
    for view in views:
        if done < len(view):
            left.append(view[done:])
        done = max(done - len(view), 0)
    return left
