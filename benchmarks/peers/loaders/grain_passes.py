"""grain: views of memory maps of our shards' images, shuffled by index, batched and read by threads.

Its shuffle is stronger: any object may come into any batch. It reads the HDF5 shards in place.

.venv-peers/bin/python -m benchmarks.peers.loaders.grain_passes SHARDS_FOLDER FOLDER
"""

import sys
from bisect import bisect_right
from collections.abc import Sequence
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import grain  # type: ignore[import-not-found]
import h5py
import numpy as np
import torch

from benchmarks.peers.loaders.passes import BATCH, LABELS, Pass, answer, shards_of, timed


class Source:
    """Rows of shards: a view of the memory map of the images, and the labels, which are in memory."""

    def __init__(self, shards: list[Path]) -> None:
        self._images, labels = [], []
        for path in shards:
            with h5py.File(path, locking=False) as file:
                images = file["images"]
                offset = images.id.get_offset()
                self._images.append(np.memmap(path, images.dtype, "r", offset, images.shape))
                labels.append({name: file[name][...] for name in LABELS})
        self._labels = {name: np.concatenate([one[name] for one in labels]) for name in LABELS}
        self._starts = np.cumsum([0, *map(len, self._images)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        shard = bisect_right(self._starts, index) - 1
        return self._images[shard][index - self._starts[shard]], index

    def batch(self, rows: Sequence[tuple[Any, int]]) -> dict[str, Any]:
        """One copy of each image, into memory that begins at a multiple of 64 bytes."""
        first, wanted = rows[0][0], [index for _, index in rows]
        images = torch.empty((len(rows), *first.shape), dtype=getattr(torch, first.dtype.name)).numpy()
        np.stack([image for image, _ in rows], out=images)
        return {"images": images, **{name: column[wanted] for name, column in self._labels.items()}}


def open_pass(shards: list[Path], threads: int) -> Pass:
    """A `MapDataset` whose batches that many threads make ahead; 0: the calling thread."""
    source, seeds = Source(shards), count()

    def one_pass() -> float:
        dataset: Any = grain.MapDataset.source(source).shuffle(seed=next(seeds))
        batches = dataset.batch(BATCH, batch_fn=source.batch)
        # A batch in each thread and one ready: more would leave the processor's cache.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1 if threads else 0)
        seconds: float = timed(batches.to_iter_dataset(options), len(source))
        return seconds

    return one_pass


def main() -> None:
    """Answer until standard input ends."""
    shards = shards_of(Path(sys.argv[1]))  # nothing is written
    answer(metadata.version("grain"), lambda threads: open_pass(shards, threads))


if __name__ == "__main__":
    main()
