"""Reads shards with damaged bytes, in a process of its own: HDF5 may crash or hang on them."""

import random
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from hpcphotoz.config import Data
from hpcphotoz.data.format import index, shards
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest, write_manifest
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.data.read import rows
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import make_dataset, make_stamps

N = 4
MEMORY = 1 << 30  # bytes that reading a shard of 20 kilobytes may allocate
SEED_S = 20
KINDS: dict[str, dict[str, Any]] = {
    "ours": {},
    "contiguous": {},
    "gzip": {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"chunks": True, "compression": "lzf"},
}


def damaged(raw: bytes, seed: int) -> bytes:
    """A file truncated, overwritten in one place, or with one to sixteen bytes changed."""
    rng, content = random.Random(seed), bytearray(raw)
    how = rng.random()
    if how < 0.1:
        return bytes(content[: rng.randrange(len(content))])
    if how < 0.2:
        at, size = rng.randrange(len(content)), rng.randrange(1, 64)
        content[at : at + size] = rng.randbytes(size)
        return bytes(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(content))
        content[at] = rng.choice([content[at] ^ (1 << rng.randrange(8)), rng.randrange(256), 0, 255])
    return bytes(content)


def make_small_dataset(folder: Path, kind: str) -> None:
    """A dataset of one small shard: ours, or one that h5py wrote."""
    if kind == "ours":
        make_dataset(folder, n=N, shard_rows=N, size=4)
        return
    folder.mkdir()
    stamps = make_stamps(N, size=4)
    with h5py.File(folder / "shard-00000.hdf5", "w") as file:
        file.attrs.update(bands=list("ugriz"), pixel_scale=0.396)
        for name in COLUMNS:
            file.create_dataset(name, data=getattr(stamps, name), **KINDS[kind])
    index.index_folder(folder)


def read_stream(folder: Path) -> None:
    for batch in Stream(folder, Data(), global_batch=N, seed=1, part="all").epoch(0):
        assert np.isfinite(batch.images.numpy()).all()


def read_damaged_files(folder: Path, kind: str, seeds: range) -> None:
    """Read every damaged file in every way, in a process of its own; each seed is printed when it begins."""
    make_small_dataset(folder, kind)
    path, listing = folder / "shard-00000.hdf5", folder / MANIFEST
    whole, manifest, text = path.read_bytes(), read_manifest(folder), listing.read_text()
    beside = {p: p.read_bytes() for p in folder.iterdir() if p not in (path, listing)}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))

    def with_manifest(read: Callable[[], Any]) -> None:
        listing.write_text(text)
        read()

    def matching(read: Callable[[], Any]) -> None:
        """Read with a manifest whose size and checksum are those of the damaged file."""
        entry = replace(manifest.shards[0], bytes=path.stat().st_size, sha256=shards.file_sha256(path))
        write_manifest(folder, replace(manifest, shards=(entry,)))
        read()

    def index_again() -> None:
        listing.unlink()
        index.index_folder(folder)

    for seed in seeds:
        print(seed, flush=True)
        signal.alarm(SEED_S)  # kills the process: while HDF5 hangs, no handler of Python runs
        path.write_bytes(damaged(whole, seed))
        unchanged = path.read_bytes() == whole
        for p, content in beside.items():
            p.write_bytes(content)
        ways: list[Callable[[], Any]] = [
            lambda: with_manifest(lambda: rows.verify(folder, read_manifest(folder))),
            lambda: with_manifest(lambda: read_stream(folder)),
            lambda: matching(lambda: list(rows.read_rows(folder, read_manifest(folder)))),
            lambda: matching(lambda: read_stream(folder)),
            index_again,
        ]
        for k, way in enumerate(ways):
            try:
                way()
                assert k != 0 or unchanged, "damage was not detected"
            except BadInput as error:
                assert "\n" not in str(error) and "shard-00000.hdf5" in str(error), error
    print("done", flush=True)


if __name__ == "__main__":  # arguments: a new folder, one of KINDS, the first seed and the end of the seeds
    folder, kind, first, end = sys.argv[1:]
    with mock.patch.object(index, "_probe"):  # which opens the shards in yet another process
        read_damaged_files(Path(folder), kind, range(int(first), int(end)))
