"""Shared by the libraries that load data: reads the HDF5 shards, times a pass, answers requests."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

BATCH = 256
LABELS = ("z_spec", "ebv", "object_id", "sky_sigma")
Pass = Callable[[], float]


def shards_of(folder: Path) -> list[Path]:
    """The HDF5 shards of a folder, in order."""
    return sorted(folder.glob("*.hdf5"))


def rows_of(shards: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Image and labels of each object of the shards, in order."""
    for path in shards:
        with h5py.File(path) as file:
            labels = {name: file[name][...] for name in LABELS}
            for row in range(len(file["images"])):
                yield {
                    "images": file["images"][row],
                    **{name: column[row] for name, column in labels.items()},
                }


def timed(batches: Iterable[Mapping[str, Any]], rows: int) -> float:
    """Seconds until all batches came; one element of each array or tensor is read.

    Raises:
        RuntimeError: not as many objects as there are.
    """
    start, seen = time.perf_counter(), 0
    for batch in batches:
        for name in ("images", *LABELS):
            batch[name][(0,) * batch[name].ndim].item()
        seen += len(batch["images"])
    seconds = time.perf_counter() - start
    if seen != rows:
        raise RuntimeError(f"{seen} of {rows} stamps came")
    return seconds


def answer(version: str, open_pass: Callable[[int], Pass]) -> None:
    """Answer lines `pass WORKERS` of standard input by the seconds of one pass, until it ends.

    Args:
        version: of the library.
        open_pass: opens a reader with that many workers or threads, once; each call is a pass in another
            order.
    """
    kept: dict[int, Pass] = {}
    print("ready", version, flush=True)
    for line in sys.stdin:
        workers = int(line.removeprefix("pass"))
        if workers not in kept:
            kept[workers] = open_pass(workers)
        print(kept[workers](), flush=True)
