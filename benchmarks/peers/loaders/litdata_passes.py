"""litdata: stamps in its optimised chunks of 64 MB, read by its `StreamingDataLoader`.

Its shuffle is weaker: chunks come in random order and are shuffled within, so that a batch holds objects of
one chunk for each worker (800 stamps of 64x64x5), where ours draws from 2048 rows of random blocks.

.venv-peers/bin/python -m benchmarks.peers.loaders.litdata_passes SHARDS_FOLDER FOLDER
"""

import os
import sys
from pathlib import Path
from typing import Any

import litdata  # type: ignore[import-not-found]
import torch
from litdata.streaming import Cache  # type: ignore[import-not-found]

from benchmarks.peers.loaders.passes import BATCH, Pass, answer, rows_of, shards_of, timed


def write(shards: list[Path], out: Path) -> None:
    """Write every row as a sample: tensors without a header, of which it knows type and shape once."""
    cache = Cache(str(out), chunk_bytes="64MB")
    for k, row in enumerate(rows_of(shards)):
        cache[k] = {name: torch.as_tensor(value) for name, value in row.items()}
    cache.done()
    cache.merge()


def open_pass(folder: Path, workers: int) -> Pass:
    """A `StreamingDataset` in its loader; every pass is the next epoch, in another order."""
    dataset = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=False)
    loader: Any = litdata.StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: timed(loader, len(dataset))


def main() -> None:
    """Write unless it is there, then answer until standard input ends."""
    os.environ.setdefault("DATA_OPTIMIZER_NUM_WORKERS", "1")
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    if not out.exists():
        write(shards_of(shards), out)
    answer(litdata.__version__, lambda workers: open_pass(out, workers))


if __name__ == "__main__":
    main()
