"""Shards open for reading: rows straight into the caller's memory, outside HDF5's global lock.

A shard whose manifest line knows its offsets is never opened through HDF5 at all: on a network file system
that saves several round trips a shard. Others are asked for their offsets, or for their chunks.
"""

import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.data import chunks, hdf5, shards
from hpcphotoz.data.order import Blocks
from hpcphotoz.errors import BadInput

Array = npt.NDArray[Any]
_T = TypeVar("_T")
_OPEN_SHARDS = 64
_IOV_MAX = 1024
_TRIES = 6
_FIRST_WAIT_S = 0.1  # doubled each time: 3 s in all
_PASSING = (errno.EIO, errno.ESTALE)  # what a network file system says while its server is restarted
_log = logging.getLogger(__name__)


class Images(Protocol):
    """The images of one shard."""

    path: str  # how they are read, in words

    def read(self, first: int, views: Sequence[memoryview]) -> None:
        """Put the rows from `first` on into `views`, one each."""
        ...


class ShardFile:
    """One shard open for reading.

    Args:
        folder, manifest: the dataset.
        number: which shard.
        keep: hold its labels in memory, 36 bytes an object and 4 more a band.

    Raises:
        BadInput: missing, of another size than the manifest says, or not as the manifest says.
    """

    def __init__(self, folder: Path, manifest: shards.Manifest, number: int, keep: bool) -> None:
        self.entry = manifest.shards[number]
        self.path = folder / self.entry.file
        self._columns = shards.columns(manifest.header)
        shape, dtype = self._columns["images"]
        self.row_bytes = int(np.prod(shape)) * dtype.itemsize
        if problem := retrying(lambda: shards.damage(folder, self.entry), self.path):
            raise BadInput(problem)
        self._labels: dict[str, Array] | None = None
        offsets = self.entry.offsets
        self.images: Images
        if offsets is None:
            with shards.open_shard(folder, manifest, self.entry) as file, shards.readable(self.path):
                self._labels = {n: hdf5.read(file[n]) for n in self._names(file)}
                self.images = self._images_of(file, folder, manifest)
            return
        self._handle = _Handle(self.path)
        self.images = _Contiguous(self._handle, offsets["images"], self.row_bytes)
        if keep:
            self._labels = self._read_labels([name for name in offsets if name != "images"])

    @property
    def has_digests(self) -> bool:
        """Whether the shard holds a checksum of each image."""
        known = self.entry.offsets if self._labels is None else self._labels
        return known is not None and "image_xxh3" in known

    def column(self, name: str, first: int, out: Array) -> None:
        """Put the rows from `first` on of a label into `out`, (n, ...) contiguous."""
        if self._labels is not None:
            out[:] = self._labels[name][first : first + len(out)]
        elif len(out):
            assert self.entry.offsets is not None
            view = out.data.cast("B")
            self._handle.read([view], self.entry.offsets[name] + first * (len(view) // len(out)))

    def _read_labels(self, names: Iterable[str]) -> dict[str, Array]:
        """Whole labels from the disk, whatever is kept."""
        assert self.entry.offsets is not None
        found = {name: empty(self._columns, name, self.entry.rows) for name in names}
        for name, column in found.items():
            self._handle.read([column.data.cast("B")], self.entry.offsets[name])
        return found

    def verify_labels(self, ids_only: bool = False) -> None:
        """Check everything but the images, or only the object ids, against the manifest.

        Raises:
            BadInput: a byte has changed since the shard was written.
        """
        ids_only &= self.entry.ids_xxh3 is not None
        if self.entry.labels_xxh3 is None or self.entry.offsets is None:
            if shards.file_sha256(self.path) != self.entry.sha256:
                raise BadInput(shards.labels_differ(self.path, self.entry, "the file"))
            return
        names = ["object_id"] if ids_only else [name for name in self.entry.offsets if name != "images"]
        if shards.label_digest(self._read_labels(names)) != (
            self.entry.ids_xxh3 if ids_only else self.entry.labels_xxh3
        ):
            raise BadInput(shards.labels_differ(self.path, self.entry, "ids" if ids_only else "labels"))

    def _names(self, file: h5py.File) -> list[str]:
        return [name for name in (*self._columns, "image_xxh3") if name != "images" and name in file]

    def _images_of(self, file: h5py.File, folder: Path, manifest: shards.Manifest) -> Images:
        data = file["images"]
        offset = data.id.get_offset()
        # An unallocated dataset behind a user block once gave offset 511: hence the check of its end.
        if offset is not None and offset + data.nbytes <= self.entry.bytes:
            self._handle = _Handle(self.path)
            return _Contiguous(self._handle, offset, self.row_bytes)
        if (index := chunks.index(data, self.entry.bytes)) is not None:
            self._handle = _Handle(self.path)
            return chunks.Chunked(
                str(self.path), self._handle.read, index, self.row_bytes, data.dtype.itemsize
            )
        return chunks.Slabs(self.path, shards.open_shard(folder, manifest, self.entry))


class Files:
    """Open shards, the least recently used closed beyond a limit: a survey has more shards than file
    handles.
    """

    def __init__(self, folder: Path, manifest: shards.Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._columns = shards.columns(manifest.header)
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()
        self._keep = len(manifest.shards) <= _OPEN_SHARDS  # all stay open: reading labels once is quicker
        self._said: set[str] = set()
        self._verified: dict[tuple[int, bool], str | None] = {}  # what is wrong, by shard and `ids_only`

    def get(self, number: int) -> ShardFile:
        """The shard of this number, opened if need be."""
        with self._lock:
            if number not in self._open:
                opened = ShardFile(self._folder, self._manifest, number, self._keep)
                self._say(opened.images.path)
                self._open[number] = opened
                if len(self._open) > _OPEN_SHARDS:
                    # Closed when the last reader drops it, not here: another thread may be in the middle of
                    # a read.
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def verify_labels(self, number: int, ids_only: bool = False) -> None:
        """`ShardFile.verify_labels`, once a shard.

        Raises:
            BadInput: a byte has changed since the shard was written.
        """
        what = (number, ids_only)
        if what not in self._verified:
            try:
                self.get(number).verify_labels(ids_only)
                self._verified[what] = None
            except BadInput as error:
                self._verified[what] = str(error)
        if problem := self._verified[what]:
            raise BadInput(problem)

    def forget(self) -> None:
        """Check labels again from now on."""
        self._verified.clear()

    def columns(self, blocks: Blocks, names: Iterable[str], verify: bool = False) -> dict[str, Array]:
        """Labels of all rows of these blocks, (rows, ...) each, block after block.

        Raises:
            BadInput: a shard cannot be read, or (`verify`) these labels have changed since it was written.
        """
        if verify:
            for shard in np.unique(blocks.shard).tolist():
                self.verify_labels(shard, ids_only=set(names) == {"object_id"})
        ends = np.cumsum(blocks.count)
        found = {name: empty(self._columns, name, int(blocks.count.sum())) for name in names}
        for shard, first, count, end in zip(
            blocks.shard.tolist(), blocks.first.tolist(), blocks.count.tolist(), ends.tolist(), strict=True
        ):
            file = self.get(shard)
            for name, out in found.items():
                file.column(name, first, out[end - count : end])
        return found

    def warn(self, text: str) -> None:
        """A warning, once: a damaged shard is met many times."""
        with self._lock:
            new = text not in self._said
            self._said.add(text)
        if new:
            _log.warning("%s", text)

    def _say(self, path: str) -> None:
        if path not in self._said:
            self._said.add(path)
            level = logging.INFO if path == _Contiguous.path else logging.WARNING
            _log.log(level, "%s: %s", self._folder, path)


def empty(columns: Mapping[str, tuple[tuple[int, ...], Any]], name: str, rows: int) -> Array:
    """Room for rows of a shard's array."""
    row, dtype = ((), np.uint64) if name == "image_xxh3" else columns[name]
    return np.empty((rows, *row), dtype)


class _Contiguous:
    path = "contiguous shards, read by preadv"

    def __init__(self, handle: "_Handle", offset: int, row_bytes: int) -> None:
        self._handle, self._offset, self._row_bytes = handle, offset, row_bytes

    def read(self, first: int, views: Sequence[memoryview]) -> None:
        for start in range(0, len(views), _IOV_MAX):
            part = views[start : start + _IOV_MAX]
            self._handle.read(part, self._offset + (first + start) * self._row_bytes)


class _Handle:
    """A file descriptor that is opened again when the server has forgotten it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = retrying(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)

    def read(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill the views, in order, from this byte on.

        Raises:
            BadInput: the file ends inside, or the error stays after several tries.
        """
        want = sum(len(view) for view in views)
        got = self._some(views, offset)
        while got != want:
            # The kernel may return less than asked near 2 GiB or on a signal.
            if got == 0 or not (views := _rest(views, got)):
                raise BadInput(f"{self._path}: ends at byte {offset}: truncated while in use, copy it again")
            want, offset = want - got, offset + got
            got = self._some(views, offset)

    def __del__(self) -> None:
        if (number := getattr(self, "_number", None)) is not None:
            os.close(number)

    def _some(self, views: Sequence[memoryview], offset: int) -> int:
        return retrying(lambda: os.preadv(self._number, views, offset), self._path, self._reopen)

    def _reopen(self) -> None:
        # The number stays the same, so that other threads in the middle of a read are not disturbed.
        fresh = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(fresh, self._number)
        os.close(fresh)


def retrying(work: Callable[[], _T], path: Path, again: Callable[[], None] | None = None) -> _T:
    """Do it, a few times over if a network file system says that it could not just now.

    Args:
        work: what to do.
        path: for the message.
        again: done before another try.

    Raises:
        BadInput: the error stays, about 3 s later, or is of another kind.
    """
    for attempt in range(_TRIES):
        try:
            if attempt and again is not None:
                again()
            return work()
        except OSError as error:
            if error.errno not in _PASSING or attempt == _TRIES - 1:
                tries = f" ({attempt + 1} tries)" if attempt else ""
                raise BadInput(f"{path}: cannot be read: {error.strerror}{tries}") from None
            _log.warning("%s: %s: trying again", path, error.strerror)
            time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError("unreachable")


def _rest(views: Sequence[memoryview], done: int) -> list[memoryview]:
    left = []
    for view in views:
        if done < len(view):
            left.append(view[done:])
        done = max(done - len(view), 0)
    return left
