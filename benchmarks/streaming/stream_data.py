"""The data sets that bench_stream reads: one set of stamps in several forms."""

from pathlib import Path

import h5py
import numpy as np

from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.format.writer import DatasetWriter

BANDS, STAMP = "ugriz", 64
SKY = np.array([0.05, 0.02, 0.03, 0.04, 0.2], np.float32)  # nMgy a pixel, SDSS
SHARDS, MANY_SHARDS = 4, 128  # twice as many as the 64 that stay open


def write_datasets(folder: Path, rows: int, quick: bool) -> None:
    """The same stamps as float32, in few shards and in many, float16, int16, and float32 in gzip-4 chunks.

    With `quick`, as float32 in few shards and int16.
    """
    stamps = make_stamps(rows, STAMP)
    for storage in ("float32", "int16") if quick else ("float32", "int16", "float16"):
        write(folder / storage, stamps, rows // SHARDS, storage)
    if not quick:
        write(folder / "many_shards", stamps, rows // MANY_SHARDS)
        compress(folder / "float32", folder / "gzip")


def make_stamps(rows: int, stamp: int) -> Stamps:
    """Blobs of many sizes and fluxes on sky noise of SDSS's size."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:stamp, :stamp].astype(np.float32) - (stamp - 1) / 2
    images = rng.standard_normal((rows, len(BANDS), stamp, stamp), np.float32)
    images *= SKY[:, None, None]
    z = rng.uniform(0.02, 0.38, rows).astype(np.float32)
    for image, redshift, radius in zip(images, z, rng.uniform(2, 6, rows), strict=True):
        colour = (0.5 + redshift) ** np.arange(len(BANDS), dtype=np.float32)
        image += colour[:, None, None] * np.exp(-(x**2 + y**2) / np.float32(2 * radius**2))
    return Stamps(
        images=images,
        z_spec=z,
        ebv=rng.uniform(0.01, 0.1, rows).astype(np.float32),
        object_id=np.arange(rows) * 7919,
        sky_sigma=np.broadcast_to(SKY, (rows, len(BANDS))).copy(),
        ra=rng.uniform(0, 360, rows),
        dec=rng.uniform(-1, 1, rows),
    )


def write(out: Path, stamps: Stamps, shard_rows: int, storage: str = "float32") -> None:
    """Write a dataset with this package."""
    header = Header(tuple(BANDS), stamps.images.shape[-1], 0.396, storage)
    with DatasetWriter(out, header, shard_rows, {"made": "for a benchmark"}) as writer:
        writer.append(stamps)


def compress(source: Path, out: Path) -> None:
    """Rewrite shards like h5py users, with images in gzip-4 + shuffle chunks of one row, and index them."""
    out.mkdir()
    for path in sorted(source.glob("*.hdf5")):
        with h5py.File(path, locking=False) as old, h5py.File(out / path.name, "w") as new:
            new.attrs.update(old.attrs)
            for name in COLUMNS:
                data = old[name][...]
                how = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
                kind = {"chunks": (1, *data.shape[1:]), **how} if name == "images" else {}
                new.create_dataset(name, data=data, **kind)
    index_folder(out)
