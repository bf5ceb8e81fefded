"""Opens shards and reads their rows straight into the caller's memory, outside HDF5's global lock.

A shard whose manifest entry lists its offsets is never opened through HDF5: on a network file system that
saves several round trips a shard. Of other shards, HDF5 gives the offsets or the chunks.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.data import hdf5
from hpcphotoz.data.format import shards
from hpcphotoz.data.format.manifest import Manifest, columns, shard_file_problem
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.read import readers
from hpcphotoz.errors import BadInput

Array = npt.NDArray[Any]
_T = TypeVar("_T")
_MAX_OPEN_SHARDS = 64
_log = logging.getLogger(__name__)
_logged_methods: set[tuple[Path, str]] = set()  # (folder, method of reading), each logged once
_logged_methods_lock = threading.Lock()


class ShardFile:
    """One shard open for reading.

    Labels are read from the file each time they are needed: the page cache holds them once a node. Only
    labels that are chunked or compressed, in shards that another program wrote, are kept in memory.

    Raises:
        BadInput: missing, of another size than the manifest says, or not as the manifest says.
    """

    def __init__(self, folder: Path, manifest: Manifest, number: int) -> None:
        self.entry = manifest.shards[number]
        self.path = folder / self.entry.file
        self._arrays = columns(manifest.header, digests=True)
        shape, dtype = self._arrays["images"]
        row_bytes = int(np.prod(shape)) * dtype.itemsize
        if problem := readers.with_retries(lambda: shard_file_problem(folder, self.entry), self.path):
            raise BadInput(problem)
        handle = readers.FileHandle(self.path)
        # Where each label lies: a file and the first byte there, or an array in memory.
        self._labels: dict[str, tuple[readers.FileHandle, int] | Array] = {}
        self.images: readers.ImageReader
        if self.entry.offsets is not None:
            self._labels = {name: (handle, offset) for name, offset in self.entry.offsets.items()}
            self.images = readers.ContiguousReader(handle, self.entry.offsets["images"], row_bytes)
            return
        with shards.open_shard(folder, manifest, self.entry) as file, shards.naming_damage(self.path):
            for name in self._arrays:
                if name not in shards.PIXEL_ARRAYS and name in file:
                    offset = self._offset_of(file[name])
                    self._labels[name] = hdf5.read(file[name]) if offset is None else (handle, offset)
            data = file["images"]
            if (offset := self._offset_of(data)) is not None:
                self.images = readers.ContiguousReader(handle, offset, row_bytes)
            else:
                self.images = readers.ChunkReader.of(
                    self.path, handle, data, self.entry.bytes
                ) or readers.Hdf5Reader(self.path, shards.open_shard(folder, manifest, self.entry))
        if not self.has_digests and self.entry.labels_xxh3 is not None:
            beside = shards.checksum_path(folder, self.entry)
            self._labels["image_xxh3"] = (readers.FileHandle(beside), 0)

    @property
    def has_digests(self) -> bool:
        """Whether a checksum of each image is stored."""
        return "image_xxh3" in self._labels

    def column(self, name: str, first: int, out: Array) -> None:
        """Read the rows of a label from `first` on into `out`, (n, ...) contiguous."""
        place = self._labels[name]
        if isinstance(place, np.ndarray):
            out[:] = place[first : first + len(out)]
        elif len(out):
            view = out.data.cast("B")
            place[0].read([view], place[1] + first * (len(view) // len(out)))

    def verify_labels(self, ids_only: bool = False) -> None:
        """Compare all labels, or only the object ids, with the manifest's checksums.

        Raises:
            BadInput: a byte has changed since the shard was written.
        """
        ids_only &= self.entry.ids_xxh3 is not None
        if self.entry.labels_xxh3 is None:
            if shards.file_sha256(self.path) != self.entry.sha256:
                raise BadInput(shards.labels_differ_message(self.path, self.entry, "the file"))
            return
        names = {"object_id"} if ids_only else self._labels.keys() - shards.PIXEL_ARRAYS
        found = {name: _allocate(self._arrays[name], self.entry.rows) for name in names}
        for name, column in found.items():
            self.column(name, 0, column)
        if shards.label_digest(found) != (self.entry.ids_xxh3 if ids_only else self.entry.labels_xxh3):
            raise BadInput(
                shards.labels_differ_message(self.path, self.entry, "ids" if ids_only else "labels")
            )

    def _offset_of(self, data: h5py.Dataset) -> int | None:
        offset = data.id.get_offset()
        # An unallocated dataset behind a user block once gave offset 511: hence the check of its end.
        inside = offset is not None and offset + data.nbytes <= self.entry.bytes
        return offset if inside and data.id.get_storage_size() == data.nbytes else None


class ShardFiles:
    """Open shards; beyond 64, the least recently used is closed.

    A survey has more shards than a process may open files.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._arrays = columns(manifest.header, digests=True)
        self._open: OrderedDict[int, Future[ShardFile]] = OrderedDict()
        self._lock = threading.Lock()
        self.openings = 0  # shards opened so far
        self._warned: set[str] = set()
        # The problem found, by shard and `ids_only`: futures, so that one thread checks a shard for all.
        self._verified: dict[tuple[int, bool], Future[str | None]] = {}

    def get(self, number: int) -> ShardFile:
        """Return shard `number`, opened if necessary; threads may open several at a time."""
        with self._lock:
            mine = number not in self._open
            opened = self._open.setdefault(number, Future())
            self._open.move_to_end(number)
            self.openings += mine
            if len(self._open) > _MAX_OPEN_SHARDS:
                # It is closed when its last reader drops it: another thread may be reading it now.
                self._open.popitem(last=False)
        if mine:
            _run_into(opened, lambda: ShardFile(self._folder, self._manifest, number))
            if opened.exception() is not None:
                with self._lock:
                    if self._open.get(number) is opened:
                        del self._open[number]
            else:
                self._log_method(opened.result().images.method)
        return opened.result()

    def find_lost(self) -> tuple[int, ...]:
        """Numbers of the shards that are missing or of another size; warns of each."""
        found = []
        for number, shard in enumerate(self._manifest.shards):
            if problem := shard_file_problem(self._folder, shard):
                self.warn(f"{problem}; its {shard.rows} objects are left out")
                found.append(number)
        return tuple(found)

    def verify_labels(self, number: int, ids_only: bool = False) -> None:
        """Call `ShardFile.verify_labels`, once a shard.

        Raises:
            BadInput: a byte has changed since the shard was written.
        """
        what = (number, ids_only)
        with self._lock:
            mine = what not in self._verified
            checked = self._verified.setdefault(what, Future())
        if mine:
            _run_into(checked, lambda: self._problem(number, ids_only))
        if problem := checked.result():
            raise BadInput(problem)

    def _problem(self, number: int, ids_only: bool) -> str | None:
        try:
            self.get(number).verify_labels(ids_only)
        except BadInput as error:
            return str(error)
        return None

    def forget_verified(self) -> None:
        """Check labels again from now on."""
        with self._lock:
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
        found = {name: _allocate(self._arrays[name], int(blocks.count.sum())) for name in names}
        for shard, first, count, end in zip(
            blocks.shard.tolist(), blocks.first.tolist(), blocks.count.tolist(), ends.tolist(), strict=True
        ):
            file = self.get(shard)
            for name, out in found.items():
                file.column(name, first, out[end - count : end])
        return found

    def warn(self, text: str) -> None:
        """Log a warning once, however often it is given: a damaged shard is read many times."""
        with self._lock:
            new = text not in self._warned
            self._warned.add(text)
        if new:
            _log.warning("%s", text)

    def _log_method(self, method: str) -> None:
        """Log how shards are read, once a process: training and validation read one dataset."""
        with _logged_methods_lock:
            new = (self._folder, method) not in _logged_methods
            _logged_methods.add((self._folder, method))
        if new:
            level = logging.INFO if method == readers.ContiguousReader.method else logging.WARNING
            _log.log(level, "%s: %s", self._folder, method)


def _run_into(future: "Future[_T]", work: Callable[[], _T]) -> None:
    """Call `work` and put its result or exception into a future that other threads wait for."""
    try:
        future.set_result(work())
    except BaseException as error:  # also KeyboardInterrupt: no thread may wait for ever
        future.set_exception(error)


def _allocate(array: tuple[tuple[int, ...], np.dtype[Any]], rows: int) -> Array:
    row, dtype = array
    return np.empty((rows, *row), dtype)
