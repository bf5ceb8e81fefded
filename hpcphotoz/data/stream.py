"""Shards in, batches out: rows read ahead by threads, in an order that no rank changes, resumable at any
batch.

Contiguous shards are read by `os.preadv` outside HDF5's global lock, each row straight into its place in the
batch.
"""

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.config import Data
from hpcphotoz.data import order, shards
from hpcphotoz.data.order import Ints
from hpcphotoz.errors import BadInput
from hpcphotoz.world import World

Part = Literal["train", "validation", "all"]
_LABELS = ("z_spec", "ebv", "object_id", "sky_sigma")
_OPEN_SHARDS = 64
_IOV_MAX = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch; may be empty when the batch is smaller than the world."""

    images: Tensor  # (n, B, y, x) float32, nMgy
    z_spec: Tensor  # (n,) float32
    ebv: Tensor  # (n,) float32, mag
    object_id: Tensor  # (n,) int64
    sky_sigma: Tensor  # (n, B) float32, nMgy
    position: Tensor  # (n,) int64: place in the global batch
    size: int  # objects in the global batch
    index: int  # number of the global batch in its epoch


class Stream:
    """Batches of a dataset, shuffled over blocks and then within windows of blocks.

    Every object of the part is seen exactly once an epoch over all ranks, at any world size; the global
    sequence depends on (seed, epoch) alone. The state of a stream is (epoch, batch index): pass them to
    `epoch` to resume.

    Args:
        folder: the dataset.
        options: block and window sizes, threads, the validation fraction.
        global_batch: objects a batch, over all ranks.
        seed: of the order and of the split.
        part: train, validation (split by object id) or all.
        world: which rank this is; it takes a contiguous slice of every global batch.
        shuffle: False: the order of the disk.

    Raises:
        BadInput: an unfinished dataset, a missing, truncated or mismatched shard, an empty part.
    """

    def __init__(
        self,
        folder: Path,
        options: Data,
        *,
        global_batch: int,
        seed: int,
        part: Part = "train",
        world: World | None = None,
        shuffle: bool = True,
    ) -> None:
        self.manifest = shards.read_manifest(folder)
        self._folder, self._options, self._seed, self._part = folder, options, seed, part
        self._world, self._global_batch, self._shuffle = world or World(), global_batch, shuffle
        self._files = _Files(folder, self.manifest)
        self._layout = order.Layout(tuple(s.rows for s in self.manifest.shards), options.block_rows)
        self.rows = self._count()
        if self.rows == 0:
            raise BadInput(
                f"{folder}: no object in its {part} part ({self.manifest.rows} in all): "
                "add objects or change data.validation"
            )

    @property
    def batches(self) -> int:
        """Global batches an epoch, the last partial one included."""
        return -(-self.rows // self._global_batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch, from global batch `start` on."""
        with ThreadPoolExecutor(self._options.read_threads, "hpcphotoz-read") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for index, (shard, row) in enumerate(self.plan(epoch)):
                    if index < start:
                        continue
                    waiting.append(pool.submit(self._read, index, shard, row))
                    if len(waiting) > self._options.read_ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def empty(self) -> Batch:
        """A batch of no objects, for a rank that has to take part in a step with nothing."""
        none = np.zeros(0, np.int64)
        return self._read(0, none, none)

    def plan(self, epoch: int) -> Iterator[tuple[Ints, Ints]]:
        """Shard and row of every object of each global batch of an epoch; the same on every rank."""
        wanted = None if self._part == "all" else self._wanted
        if self._shuffle:
            key = order.key_of(self._seed, epoch)
            parts = order.windows(self._layout, self._options.window_blocks, key, wanted)
        else:
            parts = self._in_disk_order(wanted)
        return order.global_batches(parts, self._global_batch)

    def _in_disk_order(self, wanted: order.Wanted | None) -> Iterator[tuple[Ints, Ints]]:
        for number, entry in enumerate(self.manifest.shards):
            row = np.arange(entry.rows)
            shard = np.full(entry.rows, number)
            keep = wanted(shard, row) if wanted else np.ones(entry.rows, bool)
            yield shard[keep], row[keep]

    def _wanted(self, shard: Ints, row: Ints) -> npt.NDArray[np.bool_]:
        ids = np.empty(len(shard), np.int64)
        for number in np.unique(shard):
            here = shard == number
            ids[here] = self._files.get(int(number)).labels["object_id"][row[here]]
        held = order.held_out(ids, self._options.validation, self._seed)
        return held if self._part == "validation" else ~held

    def _count(self) -> int:
        if self._part == "all":
            return self.manifest.rows
        return sum(len(row) for _, row in self._in_disk_order(self._wanted))

    def _read(self, index: int, shard: Ints, row: Ints) -> Batch:
        mine = order.rank_slice(len(shard), self._world.rank, self._world.size)
        size, position = len(shard), np.arange(len(shard))[mine]
        shard, row = shard[mine], row[mine]
        header = self.manifest.header
        images = np.empty((len(row), len(header.bands), header.stamp, header.stamp), np.float32)
        labels = {
            name: np.empty(
                (len(row), len(header.bands)) if name == "sky_sigma" else len(row), shards.COLUMNS[name]
            )
            for name in _LABELS
        }
        for number in np.unique(shard):
            here = np.flatnonzero(shard == number)
            file = self._files.get(int(number))
            file.read(images, here, row[here])
            for name, column in labels.items():
                column[here] = file.labels[name][row[here]]
        self._check(images, shard, row)
        tensors = {name: torch.from_numpy(column) for name, column in labels.items()}
        return Batch(
            torch.from_numpy(images), **tensors, position=torch.from_numpy(position), size=size, index=index
        )

    def _check(self, images: npt.NDArray[np.float32], shard: Ints, row: Ints) -> None:
        # One sum an image: NaN and infinity survive it.
        bad = np.flatnonzero(~np.isfinite(images.sum(axis=(1, 2, 3))))
        if len(bad):
            path = self._folder / self.manifest.shards[shard[bad[0]]].file
            raise BadInput(
                f"{path}: row {row[bad[0]]} has a pixel that is not finite: "
                "drop the object and write the shard again"
            )


class _Files:
    """Open shards, the least recently used closed beyond a limit: a survey has more shards than file
    handles.
    """

    def __init__(self, folder: Path, manifest: shards.Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._open: OrderedDict[int, _ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> "_ShardFile":
        with self._lock:
            if number not in self._open:
                self._open[number] = _ShardFile(self._folder, self._manifest, number)
                if len(self._open) > _OPEN_SHARDS:
                    # Closed when the last reader drops it, not here: another thread may be in the middle of
                    # a read.
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]


class _ShardFile:
    """One shard open for reading: labels in memory (36 bytes an object and 4 more a band), images on disk."""

    def __init__(self, folder: Path, manifest: shards.Manifest, number: int) -> None:
        entry = manifest.shards[number]
        self.path = folder / entry.file
        file = shards.open_shard(folder, manifest, entry)
        images = file["images"]
        self.labels: dict[str, npt.NDArray[Any]] = {name: file[name][...] for name in _LABELS}
        self._row_bytes = images.dtype.itemsize * int(np.prod(images.shape[1:]))
        self._offset = images.id.get_offset()
        self._slow: h5py.File | None = None
        if self._offset is None or self._offset + images.nbytes > entry.bytes:
            # An unallocated dataset behind a user block once gave offset 511: hence the check of its end.
            _log.warning("%s: images are not contiguous; read through h5py, which is slower", self.path)
            self._slow, self._lock = file, threading.Lock()
            return
        file.close()
        self._handle = open(self.path, "rb", buffering=0)

    def __del__(self) -> None:
        for name in ("_handle", "_slow"):
            if (file := getattr(self, name, None)) is not None:
                file.close()

    def read(self, images: npt.NDArray[np.float32], places: Ints, rows: Ints) -> None:
        """Put image `rows[k]` of the shard at `images[places[k]]`."""
        by_row = np.argsort(rows, kind="stable")
        places, rows = places[by_row], rows[by_row]
        if self._slow is not None:
            with self._lock:
                for place, row in zip(places, rows, strict=True):
                    images[place] = self._slow["images"][row]
            return
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for run in np.split(np.arange(len(rows)), breaks):
            for part in np.array_split(run, -(-len(run) // _IOV_MAX)):
                self._pread([images[place].data for place in places[part]], int(rows[part[0]]))

    def _pread(self, views: list[memoryview], row: int) -> None:
        want = self._row_bytes * len(views)
        got = os.preadv(self._handle.fileno(), views, self._offset + row * self._row_bytes)
        if got != want:
            # The kernel may return less than asked near 2 GiB or on a signal; finish row by row.
            for k, view in enumerate(views):
                self._finish(view.cast("B"), row + k)

    def _finish(self, view: memoryview, row: int) -> None:
        done = 0
        while done < len(view):
            got = os.preadv(self._handle.fileno(), [view[done:]], self._offset + row * self._row_bytes + done)
            if got == 0:
                raise BadInput(f"{self.path}: ends inside row {row}: truncated while in use, copy it again")
            done += got
