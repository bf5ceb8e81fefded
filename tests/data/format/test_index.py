"""Shards without a manifest become a dataset again, also those of int16, whose numbers are no fluxes."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest
from hpcphotoz.data.format.shards import CHECKSUM_SUFFIX
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.data.read.rows import verify
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import load, make_stamps, write_stamps


@pytest.fixture
def without_manifest(tmp_path: Path) -> Path:
    """Three shards of int16, one stamp of which has bright pixels and so a negative unit."""
    stamps = make_stamps(40)
    stamps.images[21, 2, 8, 8] = 5000 * stamps.sky_sigma[21, 2]
    return write_stamps(tmp_path / "d", stamps, storage="int16")


def test_int16_is_the_same_dataset_again(without_manifest: Path) -> None:
    folder, path = without_manifest, without_manifest / MANIFEST
    before, images, tree = read_manifest(folder), load(folder), json.loads(path.read_text())
    with h5py.File(folder / "shard-00001.hdf5") as file:
        assert (file["image_unit"][:] < 0).any()
    path.unlink()
    found = index_folder(folder)
    assert found.header == before.header and json.loads(path.read_text())["version"] == tree["version"] == 2
    for ours, theirs in zip(found.shards, before.shards, strict=True):
        for name in ("file", "rows", "bytes", "sha256", "z_min", "z_max", "labels_xxh3", "ids_xxh3"):
            assert getattr(ours, name) == getattr(theirs, name), name
    # Those of the writer are of the pixels before they are rounded to 1/32 sky sigma.
    for name in ("mean", "std", "sky_sigma"):
        ours, theirs = (getattr(each.statistics, name) for each in (found, before))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    verify(folder, found)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(load(folder), name), getattr(images, name), strict=True)
    assert not list(folder.glob(f"*{CHECKSUM_SUFFIX}")), "the shards hold the checksums of their images"


def test_int16_without_checksums_gets_them_of_the_numbers_as_stored(without_manifest: Path) -> None:
    before = load(without_manifest)
    (without_manifest / MANIFEST).unlink()
    for path in without_manifest.glob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            del file["image_xxh3"]
    verify(without_manifest, index_folder(without_manifest))
    np.testing.assert_array_equal(load(without_manifest).images, before.images)


@pytest.mark.parametrize("unit", [0.0, np.nan, np.inf])
def test_a_unit_that_is_none_is_refused(without_manifest: Path, unit: float) -> None:
    (without_manifest / MANIFEST).unlink()
    with h5py.File(without_manifest / "shard-00001.hdf5", "r+") as file:
        file["image_unit"][3, 1] = unit
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: row 3 has an image_unit that is 0 or not"):
        index_folder(without_manifest)
    assert not (without_manifest / MANIFEST).exists()


def test_other_integers_are_refused_without_the_advice_to_change_their_type(without_manifest: Path) -> None:
    (without_manifest / MANIFEST).unlink()
    with h5py.File(without_manifest / "shard-00000.hdf5", "r+") as file:
        unit = file["image_unit"][:]
        del file["image_unit"]
    with pytest.raises(BadInput, match="int16 without the array 'image_unit': .* else write fluxes in nMgy"):
        index_folder(without_manifest)
    with h5py.File(without_manifest / "shard-00000.hdf5", "r+") as file:
        numbers = file["images"][:]
        del file["images"]
        file["images"], file["image_unit"] = numbers.astype(np.int32), unit
    with pytest.raises(BadInput, match="type int32: want float32 or float16: write fluxes in nMgy"):
        index_folder(without_manifest)


def test_a_dataset_is_not_indexed_again(without_manifest: Path) -> None:
    with pytest.raises(BadInput, match="already has a manifest.json, so that it is a dataset: nothing to do"):
        index_folder(without_manifest)
