"""Reads the images of a shard: by `preadv`, chunk by chunk, or through HDF5.

Where every chunk holds whole images, and LZF is not among its filters, the compressed bytes are read outside
HDF5's global lock and decompressed by the reading thread. Anything else that is chunked is read through HDF5,
slab by slab.
"""

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.data import hdf5
from hpcphotoz.data.format.shards import naming_damage
from hpcphotoz.errors import BadInput

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_TRIES = 6
_FIRST_WAIT_S = 0.1  # doubled each time: 3 s in all
_TRANSIENT_ERRNOS = (errno.EIO, errno.ESTALE)  # from a network file system whose server is restarting
_IOV_MAX = 1024
_SLOW = "" if hdf5.HAS_ISAL else " (by zlib; installing isal makes it 1.3 times quicker)"


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
        want = sum(map(len, views))
        while want:
            got = with_retries(partial(os.preadv, self._number, views, offset), self._path, self._reopen)
            if got == want:
                return
            if got == 0:
                raise BadInput(f"{self._path}: ends at byte {offset}: truncated while in use, copy it again")
            # The kernel may return less than asked near 2 GiB or on a signal.
            views, want, offset = _unfilled(views, got), want - got, offset + got

    def __del__(self) -> None:
        if (number := getattr(self, "_number", None)) is not None:
            os.close(number)

    def _reopen(self) -> None:
        # The number stays the same, so that other threads in the middle of a read are not disturbed.
        fresh = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(fresh, self._number)
        os.close(fresh)


def with_retries(work: Callable[[], _T], path: Path, again: Callable[[], None] | None = None) -> _T:
    """Call `work` and return its result; try again, after `again`, where a network file system fails.

    Raises:
        BadInput: the error persists for about 3 s, or is of another kind; names the file.
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


class ContiguousReader:
    """Reads images that lie one after the other from byte `offset` of a file on."""

    method = "contiguous shards, read by preadv"

    def __init__(self, handle: FileHandle, offset: int, row_bytes: int) -> None:
        self._handle, self._offset, self._row_bytes = handle, offset, row_bytes

    def read(self, first: int, views: Sequence[memoryview]) -> None:
        """Read rows from `first` on, one into each view."""
        for start in range(0, len(views), _IOV_MAX):
            part = views[start : start + _IOV_MAX]
            self._handle.read(part, self._offset + (first + start) * self._row_bytes)


@dataclass(frozen=True)
class ChunkReader:
    """Reads images in chunks of whole rows; the calling thread decompresses them."""

    path: Path
    handle: FileHandle
    rows: int  # of a chunk: chunk k holds the rows from `k * rows` on
    row_bytes: int
    item: int  # bytes of a number
    filters: tuple[int, ...]
    places: npt.NDArray[np.int64]  # (chunks, 3): first byte, bytes, filters that were left out

    @classmethod
    def of(cls, path: Path, handle: FileHandle, data: h5py.Dataset, size: int) -> "ChunkReader | None":
        """The reader of an array's chunks in a file of `size` bytes; None where only HDF5 can read them."""
        if data.chunks is None or data.chunks[1:] != data.shape[1:] or data.file.userblock_size:
            return None
        filters = hdf5.filters(data)
        if hdf5.LZF in filters:
            return None
        rows, number = data.chunks[0], -(-data.shape[0] // data.chunks[0])
        places = np.full((number, 3), -1, np.int64)

        def note(chunk: Any) -> None:
            k = chunk.chunk_offset[0] // rows
            if 0 <= k < number:  # a damaged index may hold any number
                places[k] = (chunk.byte_offset, chunk.size, chunk.filter_mask)

        data.id.chunk_iter(note)
        if (places < 0).any() or (places[:, 0] + places[:, 1] > size).any():
            return None  # a damaged index: reading through HDF5 reports it
        item = data.dtype.itemsize
        return cls(path, handle, rows, math.prod(data.shape[1:]) * item, item, filters, places)

    @property
    def method(self) -> str:
        """How they are read, in words."""
        gzip = f" and decompressed by threads{_SLOW}" if hdf5.GZIP in self.filters else ""
        return f"chunked shards, read chunk by chunk{gzip}"

    def read(self, first: int, views: Sequence[memoryview]) -> None:
        """Read rows from `first` on, one into each view."""
        done = 0
        while done < len(views):
            number, start = divmod(first + done, self.rows)
            take = min(self.rows - start, len(views) - done)
            self._read_chunk(number, start, views[done : done + take])
            done += take

    def _read_chunk(self, number: int, start: int, views: Sequence[memoryview]) -> None:
        (offset, stored, mask), size = self.places[number].tolist(), self.rows * self.row_bytes
        try:
            hdf5.check_stored_size(stored, size)
            raw = np.empty(stored, np.uint8)
            self.handle.read([raw.data], offset)
            data, shuffled = hdf5.undo_filters(raw, mask, self.filters, size)
        except ValueError as error:
            first = number * self.rows
            raise BadInput(
                f"{self.path}: rows {first} to {first + self.rows - 1}: their chunk is damaged ({error}): "
                "copy or write the shard again"
            ) from None
        item = self.item if shuffled else 1
        planes = np.frombuffer(data, np.uint8).reshape(item, -1)
        size = self.row_bytes // item
        for k, view in enumerate(views, start):
            row = np.frombuffer(view, np.uint8).reshape(size, item)
            # Undoes the shuffle filter, which stores byte k of every number in plane k. One strided copy a
            # byte is three times quicker than a transposed copy.
            for byte in range(item):
                row[:, byte] = planes[byte, k * size : (k + 1) * size]


class Hdf5Reader:
    """Reads images in layouts that only HDF5 can read, one slab of rows at a time."""

    method = (
        "shards in a layout or with a filter that only HDF5 reads: slab by slab under its lock, slower "
        "than chunks of whole stamps"
    )

    def __init__(self, name: Path, file: h5py.File) -> None:
        self._name, self._file, self._lock = name, file, threading.Lock()

    def read(self, first: int, views: Sequence[memoryview]) -> None:
        """Read rows from `first` on, one into each view."""
        with self._lock, naming_damage(self._name, first, first + len(views)):
            slab = np.ascontiguousarray(hdf5.read(self._file["images"], first, first + len(views)))
        for view, image in zip(views, slab, strict=True):
            view[:] = memoryview(image).cast("B")

    def __del__(self) -> None:
        self._file.close()


ImageReader = ContiguousReader | ChunkReader | Hdf5Reader
