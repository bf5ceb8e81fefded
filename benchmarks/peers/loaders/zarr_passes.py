"""zarr with the codecs of zarrs: chunks of 64 stamps, not compressed, read as annbatch reads them.

annbatch itself needs Python 3.12. As it does, threads read random chunks into a window, here of 32 chunks as
in our default, and batches are drawn from the window: the shuffle is of the same kind as ours. Random rows
(`oindex`) are 5 times slower, because zarrs reads slices only.

.venv-peers/bin/python -m benchmarks.peers.loaders.zarr_passes SHARDS_FOLDER ZARR_FOLDER
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr

from benchmarks.peers.loaders.passes import BATCH, LABELS, Pass, answer, shards_of, timed

CHUNK, CHUNKS = 64, 32  # rows of a chunk, chunks of a window


def write(shards: list[Path], out: Path) -> None:
    """Write the shards as one array of each column, the images in chunks of `CHUNK` rows."""
    root = zarr.create_group(str(out))
    for name in ("images", *LABELS):
        with h5py.File(shards[0]) as first:
            shape, dtype = first[name].shape[1:], first[name].dtype
        rows = []
        for path in shards:
            with h5py.File(path) as file:
                rows.append(len(file[name]))
        chunks = (CHUNK if name == "images" else sum(rows), *shape)
        array = root.create_array(
            name, shape=(sum(rows), *shape), dtype=dtype, chunks=chunks, compressors=None
        )
        end = 0
        for path, count in zip(shards, rows, strict=True):
            with h5py.File(path) as file:
                array[end : end + count] = file[name][...]
            end += count


def open_pass(folder: Path, threads: int) -> Pass:
    """Windows of random chunks, read by that many threads (0: the calling one), shuffled into batches."""
    root = zarr.open_group(str(folder), mode="r")
    images: Any = root["images"]
    labels = {name: root[name][:] for name in LABELS}
    rng, rows, shape = np.random.default_rng(0), images.shape[0], images.shape[1:]
    window = np.empty((CHUNKS * CHUNK, *shape), images.dtype)
    pool = ThreadPoolExecutor(max(threads, 1))
    each = pool.map if threads else map

    def read(place: int, chunk: int) -> int:
        found = images[chunk * CHUNK : (chunk + 1) * CHUNK]
        window[place * CHUNK : place * CHUNK + len(found)] = found
        return len(found)

    def batches() -> Iterator[dict[str, Any]]:
        order = rng.permutation(-(-rows // CHUNK))
        for first in range(0, len(order), CHUNKS):
            chunks = order[first : first + CHUNKS]
            counts = list(each(read, range(len(chunks)), chunks.tolist()))
            offsets = [np.arange(count) + place * CHUNK for place, count in enumerate(counts)]
            at = rng.permutation(np.concatenate(offsets))
            row = chunks[at // CHUNK] * CHUNK + at % CHUNK
            for low in range(0, len(at), BATCH):
                taken, chosen = at[low : low + BATCH], row[low : low + BATCH]
                batch = torch.empty((len(taken), *shape), dtype=getattr(torch, window.dtype.name))
                np.take(window, taken, axis=0, out=batch.numpy(), mode="clip")
                yield {"images": batch, **{name: column[chosen] for name, column in labels.items()}}

    return lambda: timed(batches(), rows)


def main() -> None:
    """Write unless it is there, then answer until standard input ends."""
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    if not out.exists():
        write(shards_of(shards), out)
    answer(f"{zarr.__version__}, zarrs {metadata.version('zarrs')}", lambda n: open_pass(out, n))


if __name__ == "__main__":
    main()
