"""What every rank reads from the disk: rows, runs of neighbouring rows, and files."""

from dataclasses import dataclass
from itertools import islice

import numpy as np

from hpcphotoz.data.format.manifest import columns
from hpcphotoz.data.order import Int64Array
from hpcphotoz.data.stream.mixture import MixedStream
from hpcphotoz.data.stream.placement import Placement, placements
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.training.rehearsal.batches import rank_of_positions

_STEPS = 16  # from which reads are counted


@dataclass(frozen=True)
class Reads:
    """Reads of some steps, per rank: (ranks,) arrays."""

    steps: int
    rows: Int64Array
    runs: Int64Array  # of neighbouring rows, each one read of a file
    files: Int64Array  # shards
    row_bytes: int

    @property
    def bytes_per_step(self) -> float:
        """Mean bytes of a step of the rank that reads the most."""
        return float(self.rows.max()) * self.row_bytes / self.steps

    @property
    def rows_per_run(self) -> float:
        """Mean number of rows of a run."""
        return float(self.rows.sum() / max(self.runs.sum(), 1))


def count_reads(stream: Stream | MixedStream, step: int, last: int, ranks: int) -> Reads:
    """Count what all ranks read for some steps.

    Args:
        stream: the training objects, counted.
        step, last: first step, and the end of the run.
        ranks: number of ranks that divide a global batch.
    """
    steps = min(_STEPS, last - step)
    rows, runs = (np.zeros(ranks, np.int64) for _ in range(2))
    opened = np.zeros((3, 0), np.int64)  # rank, dataset and shard
    for window in placements(stream, step, step + steps):
        rank = _ranks(stream, window, ranks)
        by_rank = np.argsort(rank, kind="stable")  # a rank keeps the order of the blocks
        rank, shard, row = rank[by_rank], window.shard[by_rank], window.row[by_rank]
        new_rank, new_shard = np.diff(rank) != 0, np.diff(shard) != 0
        begins = np.concatenate([[True], new_rank | new_shard | (np.diff(row) != 1)])
        rows += np.bincount(rank, minlength=ranks)
        runs += np.bincount(rank[begins], minlength=ranks)
        here = np.stack([rank, np.full_like(rank, window.dataset), shard])
        opened = np.unique(np.concatenate([opened, here], axis=1), axis=1)
    files = np.bincount(opened[0], minlength=ranks)
    arrays = columns(stream.manifest.header, digests=True)
    row_bytes = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in arrays.values())
    return Reads(steps, rows, runs, files, row_bytes)


def number_of_blocks(stream: Stream | MixedStream) -> int:
    """Blocks of all datasets."""
    return sum(-(-shard.rows // part.block_rows) for part in stream.parts for shard in part.manifest.shards)


def window_rows(stream: Stream | MixedStream, step: int, ranks: int) -> int:
    """Rows of the rank with the most in the first window of each dataset, added up."""
    total = np.zeros(ranks, np.int64)
    seen: set[int] = set()
    last = step + max(-(-part.window_rows // part.batch_size(0)) for part in stream.parts)
    for window in islice(placements(stream, step, last + 1), 64):
        if window.dataset not in seen:
            seen.add(window.dataset)
            total += np.bincount(_ranks(stream, window, ranks), minlength=ranks)
    return int(total.max())


def _ranks(stream: Stream | MixedStream, window: Placement, ranks: int) -> Int64Array:
    rank = np.empty_like(window.position)
    steps, each = np.unique(window.step, return_inverse=True)
    sizes = np.array([stream.batch_size(step % stream.batches) for step in steps.tolist()])[each]
    for size in np.unique(sizes).tolist():
        mine = sizes == size
        rank[mine] = rank_of_positions(window.position[mine], size, ranks)
    return rank
