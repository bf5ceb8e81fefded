"""Shards: what is written is read back, and altered shards are refused."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.data.format import shards
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.data.format.writer import ALIGNMENT
from hpcphotoz.data.read import rows
from hpcphotoz.errors import BadInput
from tests.helpers.commands import copy
from tests.helpers.datasets import load, make_dataset, make_stamps


def test_what_is_written_is_read_back_bit_for_bit(dataset: Path) -> None:
    written, found = make_stamps(75), load(dataset)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name), strict=True)
    assert [shard.rows for shard in read_manifest(dataset).shards] == [32, 32, 11]


def test_h5py_alone_reads_a_shard(dataset: Path) -> None:
    with h5py.File(dataset / "shard-00001.hdf5") as file:
        assert file["images"].shape == (32, 5, 16, 16)
        assert list(file.attrs["bands"]) == list("ugriz")
        assert file.attrs["flux_unit"] == "nanomaggy"
        assert file.attrs["pixel_scale"] == 0.396
        assert file["images"].chunks is None


def test_large_arrays_are_contiguous_and_aligned(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "d", n=300, shard_rows=300, size=32)
    with h5py.File(folder / "shard-00000.hdf5") as file:
        assert file["images"].id.get_offset() % ALIGNMENT == 0


def test_a_truncated_shard_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    with (folder / "shard-00001.hdf5").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: 1000 bytes"):
        read_manifest(folder)


def test_a_missing_shard_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    (folder / "shard-00002.hdf5").unlink()
    with pytest.raises(
        BadInput, match=r"shard-00002\.hdf5: listed in the manifest .rows 0 to 10. but missing"
    ):
        read_manifest(folder)


def test_verify_finds_one_flipped_bit(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    manifest = read_manifest(folder)
    rows.verify(folder, manifest)
    path = folder / "shard-00000.hdf5"
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    (folder / "shard-00002.hdf5").unlink()
    both = (
        r"damage in 2 of 3 shards: .*shard-00000\.hdf5: row 31: pixels differ.*; "
        r".*shard-00002\.hdf5: .*missing"
    )
    with pytest.raises(BadInput, match=both):
        rows.verify(folder, manifest)


def test_a_shard_that_disagrees_with_the_manifest_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    manifest = read_manifest(folder)
    four = replace(manifest, header=replace(manifest.header, bands=tuple("ugri")))
    with pytest.raises(BadInput, match=r"'images' is float32"):
        list(rows.read_rows(folder, four))
    swapped = replace(manifest, header=replace(manifest.header, bands=tuple("zirgu")))
    with pytest.raises(BadInput, match="bands"):
        list(rows.read_rows(folder, swapped))


def test_a_linked_shard_is_refused(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / MANIFEST).write_text((dataset / MANIFEST).read_text())
    for path in dataset.glob("*.hdf5"):
        (folder / path.name).symlink_to(path)
    with pytest.raises(BadInput, match=r"shard-00000\.hdf5: a link or no plain file"):
        read_manifest(folder)


@pytest.mark.parametrize("column", ["images", "z_spec", "ra", "image_xxh3"])
def test_reading_in_order_compares_checksums_too(dataset: Path, tmp_path: Path, column: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    offsets = read_manifest(folder).shards[1].offsets
    assert offsets is not None
    with (folder / "shard-00001.hdf5").open("r+b") as file:
        file.seek(offsets[column] + 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: .*checksum"):
        load(folder)


def test_an_hdf5_error_within_a_shard_is_one_line(dataset: Path, tmp_path: Path) -> None:
    from hpcphotoz.data.format.index import index_folder

    folder = tmp_path / "set"
    folder.mkdir()
    with h5py.File(dataset / "shard-00000.hdf5") as old, h5py.File(folder / "shard-00000.hdf5", "w") as new:
        new.attrs.update(bands=old.attrs["bands"], pixel_scale=old.attrs["pixel_scale"])
        for name in COLUMNS:
            new.create_dataset(name, data=old[name][...], chunks=True, compression="gzip")
        place = new["images"].id.get_chunk_info(0).byte_offset
    manifest = index_folder(folder)
    with (folder / "shard-00000.hdf5").open("r+b") as file:
        file.seek(place + 20)
        file.write(b"damage")
    entry = replace(manifest.shards[0], sha256=shards.file_sha256(folder / "shard-00000.hdf5"))
    with pytest.raises(BadInput, match=r"shard-00000\.hdf5: rows 0 to 31 cannot be read \("):
        list(rows.read_rows(folder, replace(manifest, shards=(entry,))))
