"""The readers that bench_stream compares: functions that return the seconds of one shuffled pass."""

import itertools
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.driver import Peer
from hpcphotoz.config import Data
from hpcphotoz.data.select.subset import SplitPart
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.stream import Stream

BATCH = 256
LABELS = ("z_spec", "ebv", "object_id", "sky_sigma")
ROOT = Path(__file__).parents[2]
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
Reader = Callable[[], float]
T = TypeVar("T")


def ours(folder: Path, options: Data, *, fresh: bool = False, part: SplitPart = "all") -> Reader:
    """`Stream`, another epoch every call; `fresh`: a new stream each time, so every epoch is its first.

    Of a part, the seconds are those that as many objects would take as the whole has.
    """
    kept, epochs = open_stream(folder, options, part), itertools.count()

    def read() -> float:
        stream = open_stream(folder, options, part) if fresh else kept
        seconds = timed(lambda: stream.epoch(next(epochs)), _tensors, stream.rows)
        return seconds * stream.manifest.rows / stream.rows

    return read


def _tensors(batch: Batch) -> list[Tensor]:
    return [batch.images, *(getattr(batch, name) for name in LABELS)]


def open_stream(folder: Path, options: Data, part: SplitPart = "all") -> Stream:
    """A part of a dataset, or all of it, in batches of `BATCH`."""
    return Stream(folder, options, global_batch=BATCH, seed=0, part=part)


def timed(
    start_pass: Callable[[], Iterable[T]], tensors_of: Callable[[T], Iterable[Tensor]], rows: int
) -> float:
    """Seconds from asking for a pass until all its batches came; one element of each tensor is read.

    Raises:
        RuntimeError: not as many objects as there are.
    """
    start, seen = time.perf_counter(), 0
    for batch in start_pass():
        for k, tensor in enumerate(tensors_of(batch)):
            tensor[(0,) * tensor.ndim].item()
            seen += len(tensor) if k == 0 else 0
    seconds = time.perf_counter() - start
    if seen != rows:
        raise RuntimeError(f"{seen} of {rows} objects came")
    return seconds


class Rows(Dataset[dict[str, Any]]):
    """Rows of HDF5 shards as a good training script reads them: files opened once in each worker and kept
    open, labels in memory, one h5py read an image.
    """

    def __init__(self, shards: list[Path]) -> None:
        self._shards = shards
        self._starts = [0]
        for path in shards:
            with h5py.File(path, locking=False) as file:
                self._starts.append(self._starts[-1] + len(file["images"]))
        self._files: list[h5py.File] = []
        self._images: list[h5py.Dataset] | None = None
        self._labels: dict[str, np.ndarray[Any, Any]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._images is None:
            files = [h5py.File(path, locking=False) for path in self._shards]
            self._images = [file["images"] for file in files]
            self._labels = {name: np.concatenate([file[name][...] for file in files]) for name in LABELS}
        shard = bisect_right(self._starts, index) - 1
        image = self._images[shard][index - self._starts[shard]]
        return {"images": image, **{name: column[index] for name, column in self._labels.items()}}


class PlainRows(Rows):
    """Rows as most published scripts read them: files kept open, every value taken as `file[name][row]`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self._files:
            self._files = [h5py.File(path, locking=False) for path in self._shards]
        shard = bisect_right(self._starts, index) - 1
        row = index - self._starts[shard]
        return {name: self._files[shard][name][row] for name in ("images", *LABELS)}


class BatchedRows(Dataset[dict[str, Any]]):
    """A batch at a time into one array, by the `__getitems__` that DataLoader asks for: nothing is stacked.

    Each image is read into its place by h5py's low-level interface, two to four times as quick as
    `read_direct`; labels are in memory.
    """

    def __init__(self, shards: list[Path]) -> None:
        self._shards = shards
        with h5py.File(shards[0], locking=False) as file:
            self._shape, self._dtype = file["images"].shape[1:], file["images"].dtype
        lengths = []
        for path in shards:
            with h5py.File(path, locking=False) as file:
                lengths.append(len(file["images"]))
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._images: list[Any] = []
        self._labels: dict[str, np.ndarray[Any, Any]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        if not self._images:
            files = [h5py.File(path, locking=False) for path in self._shards]
            self._images = [self._open_images(file) for file in files]
            self._labels = {name: np.concatenate([file[name][...] for file in files]) for name in LABELS}
        wanted = np.asarray(indices)
        out = np.empty((len(wanted), *self._shape), self._dtype)
        shard = np.searchsorted(self._starts, wanted, side="right") - 1
        for k, (number, row) in enumerate(
            zip(shard.tolist(), (wanted - self._starts[shard]).tolist(), strict=True)
        ):
            self._read(number, row, out[k])
        return {"images": out, **{name: column[wanted] for name, column in self._labels.items()}}

    def _open_images(self, file: h5py.File) -> Any:
        images = file["images"].id
        return images, images.get_space(), h5py.h5s.create_simple((1, *self._shape))

    def _read(self, shard: int, row: int, out: np.ndarray[Any, Any]) -> None:
        images, inside, one = self._images[shard]
        inside.select_hyperslab((row, 0, 0, 0), (1, *self._shape))
        images.read(one, inside, out)


class MappedRows(BatchedRows):
    """The same from a memory map of each shard's images, found by their offset in the file."""

    def _open_images(self, file: h5py.File) -> Any:
        images = file["images"]
        offset = images.id.get_offset()
        return np.memmap(file.filename, images.dtype, "r", offset, images.shape)

    def _read(self, shard: int, row: int, out: np.ndarray[Any, Any]) -> None:
        out[:] = self._images[shard][row]


def batched_dataloader(folder: Path, workers: int, kind: type[BatchedRows]) -> Reader:
    """torch's DataLoader over `BatchedRows`, its workers kept from pass to pass."""
    dataset = kind(sorted(folder.glob("*.hdf5")))
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_tensors_of_arrays,
    )
    return lambda: timed(lambda: loader, lambda batch: batch.values(), len(dataset))


def _tensors_of_arrays(arrays: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def h5py_dataloader(folder: Path, workers: int, kind: type[Rows] = Rows) -> Reader:
    """torch's DataLoader over `Rows`, its workers kept from pass to pass."""
    dataset = kind(sorted(folder.glob("*.hdf5")))
    loader = DataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: timed(lambda: loader, lambda batch: batch.values(), len(dataset))


def preadv(folder: Path, block_rows: int, threads: int) -> Reader:
    """`os.preadv` of the images alone, block by block in shuffled order, into one buffer a thread."""
    blocks: list[tuple[int, int, int]] = []
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path, locking=False) as file:
            images = file["images"]
            offset, rows, size = images.id.get_offset(), len(images), images.nbytes // len(images)
        handle = os.open(path, os.O_RDONLY)  # closed with the process
        for first in range(0, rows, block_rows):
            blocks.append((handle, offset + first * size, min(block_rows, rows - first) * size))
    buffers = [memoryview(bytearray(max(size for *_, size in blocks))) for _ in range(threads)]
    pool, rng = ThreadPoolExecutor(threads), np.random.default_rng(0)

    def work(thread: int, order: list[int]) -> int:
        return sum(os.preadv(h, [buffers[thread][:n]], at) for h, at, n in (blocks[k] for k in order))

    def read() -> float:
        order = rng.permutation(len(blocks)).tolist()
        start = time.perf_counter()
        got = sum(pool.map(work, range(threads), [order[k::threads] for k in range(threads)]))
        seconds = time.perf_counter() - start
        if got != sum(size for *_, size in blocks):
            raise RuntimeError(f"preadv gave {got} bytes: a short read")
        return seconds

    return read


class Mds(Peer):
    """mosaicml-streaming in `.venv-peers`, kept alive and asked for one pass at a time."""

    def __init__(self, shards: Path, out: Path) -> None:
        super().__init__("mosaicml-streaming", [PEERS_PYTHON, ROOT / "benchmarks/peers/mds.py", shards, out])

    def reader(self, workers: int) -> Reader:
        """One pass by a DataLoader with that many workers."""
        return lambda: float(self.ask(f"pass {workers}", timeout_s=600))
