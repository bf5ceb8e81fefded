"""Streams of small datasets, and datasets that are damaged or written by h5py."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcphotoz.config import Data
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.data.select.subset import SplitPart
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.world import World
from tests.helpers.datasets import make_stamps

SMALL = Data(block_rows=4, window_blocks=3, validation=0.2, test=0.2)


def ids(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.object_id]


def open_stream(
    folder: Path, rank: int = 0, size: int = 1, part: SplitPart = "all", options: Data = SMALL
) -> Stream:
    return Stream(folder, options, global_batch=16, seed=1, part=part, world=World(rank, size, rank, size))


def assert_holds_stamps(opened: Stream) -> None:
    """Asserts that an epoch of all objects yields the 75 stamps of the fixture `dataset`."""
    stamps = make_stamps(75)
    row = {int(i): k for k, i in enumerate(stamps.object_id)}
    seen = 0
    for batch in opened.epoch(0):
        rows = [row[int(i)] for i in batch.object_id]
        for name in ("images", "z_spec", "ebv", "sky_sigma"):
            np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(stamps, name)[rows])
        assert batch.position.tolist() == list(range(batch.size))
        seen += len(rows)
    assert seen == 75


def rewrite_with_h5py(dataset: Path, folder: Path, **options: Any) -> Path:
    """The dataset with its images written by h5py with these options, and indexed."""
    folder.mkdir()
    for path in sorted(dataset.glob("*.hdf5")):
        with h5py.File(path) as ours, h5py.File(folder / path.name, "w") as theirs:
            theirs.attrs["bands"] = ours.attrs["bands"]
            theirs.attrs["pixel_scale"] = ours.attrs["pixel_scale"]
            for name in COLUMNS:
                theirs.create_dataset(name, data=ours[name][...], **(options if name == "images" else {}))
    index_folder(folder)
    return folder


def flip_byte(dataset: Path, folder: Path, name: str, row: int, column: str = "images") -> Path:
    """A copy of the dataset with one byte flipped, in this row of this shard."""
    shutil.copytree(dataset, folder)
    entry = next(s for s in read_manifest(folder).shards if s.file == name)
    assert entry.offsets is not None
    with h5py.File(folder / name) as file:
        size = file[column].dtype.itemsize * int(np.prod(file[column].shape[1:]))
    with (folder / name).open("r+b") as raw:
        raw.seek(entry.offsets[column] + row * size + size // 2)
        byte = raw.read(1)
        raw.seek(-1, 1)
        raw.write(bytes([byte[0] ^ 1]))
    return folder
