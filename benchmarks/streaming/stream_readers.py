"""The readers that bench_stream compares: functions that return the seconds of one shuffled pass."""

import itertools
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
from torch import Tensor

from benchmarks.peers.driver import Peer
from hpcphotoz.config import Data
from hpcphotoz.data.select.subset import SplitPart
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.data.stream.window import BufferPool

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


def preadv(folder: Path, block_rows: int, threads: int, buffers: int = 1) -> Reader:
    """`os.preadv` of the images alone, block by block in shuffled order.

    Each thread reads into as many buffers of a block in turn: one stays in the processor's cache; many are
    the memory that batches take. Every buffer begins on a page, where the kernel copies quickest.
    """
    blocks: list[tuple[int, int, int]] = []
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path, locking=False) as file:
            images = file["images"]
            offset, rows, size = images.id.get_offset(), len(images), images.nbytes // len(images)
        handle = os.open(path, os.O_RDONLY)  # closed with the process
        for first in range(0, rows, block_rows):
            blocks.append((handle, offset + first * size, min(block_rows, rows - first) * size))
    largest = max(size for *_, size in blocks)
    pool = BufferPool(largest, pinned=False)
    memory = [[pool.acquire().data for _ in range(buffers)] for _ in range(threads)]
    executor, rng = ThreadPoolExecutor(threads), np.random.default_rng(0)

    def work(thread: int, order: list[int]) -> int:
        turns = zip((blocks[k] for k in order), itertools.cycle(memory[thread]), strict=False)
        return sum(os.preadv(h, [buffer[:n]], at) for (h, at, n), buffer in turns)

    def read() -> float:
        order = rng.permutation(len(blocks)).tolist()
        start = time.perf_counter()
        got = sum(executor.map(work, range(threads), [order[k::threads] for k in range(threads)]))
        seconds = time.perf_counter() - start
        if got != sum(size for *_, size in blocks):
            raise RuntimeError(f"preadv gave {got} bytes: a short read")
        return seconds

    return read


class LoaderPeer(Peer):
    """A library that loads data, in `.venv-peers`, kept alive and asked for one pass at a time.

    Args:
        library: a module of `benchmarks/peers/loaders`: mosaicml_streaming, litdata, grain or zarr.
        shards: folder of the HDF5 shards, which the library writes in its own format.
        out: folder for that; if it exists, it holds them.
    """

    def __init__(self, library: str, shards: Path, out: Path) -> None:
        module = f"benchmarks.peers.loaders.{library}_passes"
        command: list[str | Path] = [PEERS_PYTHON, "-m", module, shards, out]
        super().__init__(library, command, environment={"PYTHONPATH": str(ROOT)})

    def reader(self, workers: int) -> Reader:
        """One pass with that many workers, or threads where the library has threads."""
        return lambda: float(self.ask(f"pass {workers}", timeout_s=600))


def first_pass_of_process(library: str, shards: Path, out: Path, workers: int) -> Reader:
    """The first pass of a new process of a library: one that maps files keeps them in the page cache."""

    def read() -> float:
        peer = LoaderPeer(library, shards, out)
        try:
            return peer.reader(workers)()
        finally:
            peer.close()

    return read
