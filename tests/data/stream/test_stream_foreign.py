"""Shards that h5py wrote stream like our own, and are verified as they are read."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.data.format import shards
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.errors import BadInput
from tests.helpers.data.streams import SMALL, ids, open_stream, rewrite_with_h5py
from tests.helpers.datasets import make_stamps


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "contiguous"),
        ({"chunks": (1, 5, 16, 16), "compression": "gzip", "shuffle": True}, "chunk by chunk"),
        ({"chunks": (1, 5, 16, 16), "compression": "gzip"}, "chunk by chunk"),
        ({"chunks": (6, 5, 16, 16), "compression": "gzip", "shuffle": True}, "chunk by chunk"),
        ({"chunks": (7, 5, 16, 16)}, "chunk by chunk"),
        ({"compression": "gzip"}, "only HDF5 reads"),
        ({"chunks": (1, 5, 16, 16), "compression": "lzf"}, "only HDF5 reads"),
        ({"chunks": (2, 5, 16, 16), "compression": "gzip", "fletcher32": True}, "chunk by chunk"),
    ],
)
def test_all_formats_of_h5py_stream_the_same_and_log_how_they_are_read(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], says: str
) -> None:
    folder = rewrite_with_h5py(dataset, tmp_path / "d", **options)
    caplog.set_level("INFO", "hpcphotoz")
    stamps = make_stamps(75)
    row = {int(i): k for k, i in enumerate(stamps.object_id)}
    for rank in range(2):
        for batch in open_stream(folder, rank, 2, part="train").epoch(0):
            rows = [row[int(i)] for i in batch.object_id]
            np.testing.assert_array_equal(batch.images.numpy(), stamps.images[rows])
    assert sum(says in record.message for record in caplog.records) == 1, "once a process"


def test_blocks_are_whole_chunks(dataset: Path, tmp_path: Path) -> None:
    folder = rewrite_with_h5py(dataset, tmp_path / "d", chunks=(6, 5, 16, 16), compression="gzip")
    window_order = next(open_stream(folder).plan(0))
    starts = window_order.row[np.flatnonzero(np.diff(window_order.row, prepend=-2) != 1)]
    assert np.all(starts % 6 == 0), "blocks of 4 rows would decompress chunks of 6 twice"


def test_a_user_file_with_a_nan_pixel_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = rewrite_with_h5py(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00001.hdf5", "r+") as file:
        file["images"][7, 2, 3, 4] = np.nan
    options = SMALL.model_copy(update={"verify": "never"})
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: row 7 has a pixel that is not finite"):
        list(open_stream(folder, options=options).epoch(0))
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: row 7: pixels differ from the checksums"):
        list(open_stream(folder).epoch(0))


@pytest.mark.parametrize("options", [{}, {"chunks": (6, 5, 16, 16), "compression": "gzip"}], ids=str)
def test_foreign_shards_are_verified_while_they_are_read(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """No file is hashed as a whole: a rank verifies the labels of its shards and the images that it reads."""
    folder = rewrite_with_h5py(dataset, tmp_path / "d", **options)

    def whole(path: Path) -> str:
        raise AssertionError(f"{path} is hashed whole")

    monkeypatch.setattr(shards, "file_sha256", whole)
    for part in ("all", "train"):
        read = [ids(list(open_stream(folder, rank, 4, part).epoch(0))) for rank in range(4)]
        assert sorted(sum(read, [])) == sorted(ids(list(open_stream(dataset, part=part).epoch(0))))
    with h5py.File(folder / "shard-00000.hdf5", "r+") as file:
        file["images"][3, 1, 2, 2] += 1
        file["images"].flush()
    if not options:  # a compressed chunk may grow, and the file with it
        with pytest.raises(BadInput, match=r"shard-00000\.hdf5: row 3: pixels differ from the checksums"):
            list(open_stream(folder).epoch(0))
    with h5py.File(folder / "shard-00002.hdf5", "r+") as file:
        file["z_spec"][4] += 0.01
    with pytest.raises(BadInput, match=r"shard-00002\.hdf5: labels of rows 0 to 10: checksum differs"):
        list(open_stream(folder).epoch(0))


READ = """
import sys
from pathlib import Path
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.config import Data
folder = Path(sys.argv[1])
"""


READ_IN_ORDER = READ + "print(len(list(read_rows(folder, read_manifest(folder)))))"


READ_AS_STREAM = (
    READ + "print(len(list(Stream(folder, Data(), global_batch=8, seed=1, part='all').epoch(0))))"
)


def test_checksums_beside_a_shard_are_checked_too(dataset: Path, tmp_path: Path) -> None:
    folder = rewrite_with_h5py(dataset, tmp_path / "d")
    beside = folder / "shard-00001.hdf5.xxh3"
    manifest, content = read_manifest(folder), beside.read_bytes()
    assert len(content) == 8 * 32
    beside.write_bytes(content[:8] + b"\0" + content[9:])
    for read in (lambda: list(open_stream(folder).epoch(0)), lambda: list(read_rows(folder, manifest))):
        with pytest.raises(BadInput, match=r"shard-00001\.hdf5: labels of rows 0 to 31: checksum differs"):
            read()
    beside.unlink()
    for read in (lambda: list(open_stream(folder).epoch(0)), lambda: list(read_rows(folder, manifest))):
        with pytest.raises(BadInput, match=r"shard-00001\.hdf5\.xxh3: .*No such file"):
            read()
    beside.write_bytes(content[:-8])
    for read in (lambda: list(open_stream(folder).epoch(0)), lambda: list(read_rows(folder, manifest))):
        with pytest.raises(BadInput, match=r"shard-00001\.hdf5\.xxh3: 248 bytes of checksums, want 256"):
            read()


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_checksums_beside_a_shard_must_be_a_plain_file(dataset: Path, tmp_path: Path, kind: str) -> None:
    """In another process, because reading a pipe would not end."""
    folder = rewrite_with_h5py(dataset, tmp_path / "d")
    beside = folder / "shard-00001.hdf5.xxh3"
    if kind == "link":
        beside.rename(tmp_path / "elsewhere")
        beside.symlink_to(tmp_path / "elsewhere")
    else:
        beside.unlink()
        (os.mkfifo if kind == "pipe" else os.mkdir)(beside)
    for code in (READ_IN_ORDER, READ_AS_STREAM):
        words = [sys.executable, "-c", code, str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, done.stderr
        assert "shard-00001.hdf5.xxh3: a link or no plain file: copy or hard-link it" in done.stderr


def test_a_damaged_chunk_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = rewrite_with_h5py(dataset, tmp_path / "d", chunks=(4, 5, 16, 16), compression="gzip")
    with h5py.File(folder / "shard-00000.hdf5") as file:
        place = file["images"].id.get_chunk_info(2).byte_offset
    with (folder / "shard-00000.hdf5").open("r+b") as raw:
        raw.seek(place + 100)
        raw.write(b"damage!")
    options = SMALL.model_copy(update={"verify": "never"})
    with pytest.raises(BadInput, match=r"shard-00000\.hdf5: rows 8 to 11: their chunk is damaged"):
        list(open_stream(folder, options=options).epoch(0))
