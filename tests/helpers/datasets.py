"""Small datasets for tests: blobs whose colour follows redshift, so that a network can learn it."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcphotoz.config import Data
from hpcphotoz.data.format.manifest import Header, Manifest, read_manifest, write_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.stream.stream import Stream

HEADER = Header(tuple("ugriz"), 16, 0.396)
SKY = np.array([0.05, 0.02, 0.03, 0.04, 0.2])
NOISE_BANDS, NOISE_SIDE = ("g", "r", "i"), 8  # of noise_stamps


def make_stamps(n: int, *, size: int = 16, seed: int = 0, bands: int = 5) -> Stamps:
    """Stamps of `n` galaxies (nMgy): the flux in band b grows as (0.5 + z)^b, over sky noise as in SDSS."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.02, 0.38, n)
    sky = np.broadcast_to(SKY[:bands], (n, bands))
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    blob = np.exp(-(x**2 + y**2) / 8)
    flux = 2 * (0.5 + z[:, None]) ** np.arange(bands)
    images = flux[:, :, None, None] * blob + sky[:, :, None, None] * rng.normal(size=(n, bands, size, size))
    return Stamps(
        images=images.astype(np.float32),
        z_spec=z.astype(np.float32),
        ebv=rng.uniform(0.01, 0.1, n).astype(np.float32),
        object_id=(np.arange(n) * 7919 + (seed << 32)).astype(np.int64),
        sky_sigma=sky.astype(np.float32),
        ra=rng.uniform(0, 360, n),
        dec=rng.uniform(-1, 1, n),
    )


def noise_stamps(n: int = 50, unknown: int = 0) -> Stamps:
    """Stamps of pure noise (3 bands, 8 pixels) with ids from 100; the first `unknown` redshifts are NaN."""
    rng = np.random.default_rng(7)
    z = rng.uniform(0.01, 0.39, n).astype(np.float32)
    z[:unknown] = np.nan
    bands = len(NOISE_BANDS)
    return Stamps(
        images=rng.normal(0, 1, (n, bands, NOISE_SIDE, NOISE_SIDE)).astype(np.float32),
        z_spec=z,
        ebv=np.zeros(n, np.float32),
        object_id=np.arange(100, 100 + n, dtype=np.int64),
        sky_sigma=rng.uniform(0.5, 2, (n, bands)).astype(np.float32),
        ra=np.zeros(n),
        dec=np.zeros(n),
    )


def write_stamps(
    out: Path, stamps: Stamps, *, bands: Sequence[str] = "", shard_rows: int = 16, storage: str = "float32"
) -> Path:
    """Write stamps as a dataset and return its folder; without `bands`, 3 are gri and 5 are ugriz."""
    names = tuple(bands or {3: NOISE_BANDS, 5: "ugriz"}[stamps.images.shape[1]])
    header = Header(names, stamps.images.shape[-1], 0.396, storage)
    with DatasetWriter(out, header, shard_rows, {"made": "for a test"}) as writer:
        writer.append(stamps)
    return out


def make_dataset(out: Path, *, n: int, shard_rows: int, size: int = 16, bands: str = "ugriz") -> Path:
    """Write `make_stamps` as a dataset and return its folder."""
    stamps = make_stamps(n, size=size, bands=len(bands))
    return write_stamps(out, stamps, bands=bands, shard_rows=shard_rows)


def linked_dataset(real: Path, folder: Path, count: int) -> Path:
    """A dataset of `count` hard links to the first shard of another."""
    manifest = read_manifest(real)
    folder.mkdir()
    entries = tuple(replace(manifest.shards[0], file=f"shard-{k:05d}.hdf5") for k in range(count))
    for entry in entries:
        os.link(real / manifest.shards[0].file, folder / entry.file)
    write_manifest(folder, replace(manifest, shards=entries))
    return folder


def load(folder: Path, manifest: Manifest | None = None) -> Stamps:
    """All objects of a dataset, in memory."""
    return Stamps.concatenate(list(read_rows(folder, manifest or read_manifest(folder))))


def streamed_images(folder: Path) -> np.ndarray:
    """Images of a dataset of at most 12 objects, as a stream in stored order yields them."""
    options = Data(block_rows=4, window_blocks=3)
    (batch,) = Stream(folder, options, global_batch=12, seed=1, part="all", shuffle=False).epoch(0)
    return batch.images.numpy()
