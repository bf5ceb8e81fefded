"""Extra columns: written, read, checked and indexed with their types and units."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcphotoz.data.format import extra
from hpcphotoz.data.format.extra import ExtraColumn, mask_column, variance_column
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import MANIFEST, Header, read_manifest
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.read.rows import read_rows, verify
from hpcphotoz.errors import BadInput
from tests.helpers.commands import copy
from tests.helpers.data.extra import BANDS, EXTRA, SIDE, extra_stamps, write_extra_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_extra_dataset(tmp_path_factory.mktemp("extra") / "d", 20)


def load(folder: Path, pixels: bool = True) -> Stamps:
    manifest = read_manifest(folder)
    names = [column.name for column in manifest.header.extra if column.is_pixels] if pixels else []
    return Stamps.concatenate(list(read_rows(folder, manifest, 5, pixel_columns=names)))


def test_columns_come_back_with_their_types(folder: Path) -> None:
    manifest, expected = read_manifest(folder), extra_stamps(20)
    verify(folder, manifest)
    found = load(folder)
    assert manifest.header.extra == EXTRA
    assert json.loads((folder / MANIFEST).read_text())["version"] == 3
    assert found.extra.keys() == {column.name for column in EXTRA}
    for column in EXTRA:
        assert found.extra[column.name].dtype == np.dtype(column.dtype)
        np.testing.assert_array_equal(found.extra[column.name], expected.extra[column.name])
    np.testing.assert_array_equal(found.images, expected.images)


def test_columns_of_pixels_are_read_only_when_asked_for(folder: Path) -> None:
    found = load(folder, pixels=False)
    assert found.extra.keys() == {column.name for column in EXTRA} - {"variance", "mask"}


def test_h5py_alone_reads_them(folder: Path) -> None:
    expected = extra_stamps(20)
    with h5py.File(folder / "shard-00001.hdf5") as file:
        assert file["petro_r"].attrs["unit"] == "mag" and "unit" not in file["flags"].attrs
        assert file["clean"].dtype == np.uint8
        np.testing.assert_array_equal(file["clean"][:], expected.extra["clean"][8:16])
        np.testing.assert_array_equal(file["spectype"][:], expected.extra["spectype"][8:16])
        packed = np.unpackbits(file["mask"][:], axis=-1, count=SIDE**2).reshape(8, BANDS, SIDE, SIDE)
    np.testing.assert_array_equal(packed, extra.unpack_mask(expected.extra["mask"], SIDE)[8:16])


@pytest.mark.parametrize("name", ["petro_r", "clean", "spectype", "psf_fwhm", "variance"])
def test_a_changed_byte_is_found(folder: Path, tmp_path: Path, name: str) -> None:
    damaged = copy(folder, tmp_path / "d")
    path = damaged / "shard-00001.hdf5"
    offset = (read_manifest(folder).shards[1].offsets or {})[name]
    raw = bytearray(path.read_bytes())
    raw[offset + 1] ^= 4
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5.*checksum differs"):
        verify(damaged, read_manifest(damaged))
    if name != "variance":  # pixel columns are not part of the labels
        with pytest.raises(BadInput, match=r"shard-00001\.hdf5: labels of rows 0 to 7: checksum differs"):
            load(damaged)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (ExtraColumn("1a", "int8"), "must be named"),
        (ExtraColumn("a b", "int8"), "must be named"),
        (ExtraColumn("a" * 65, "int8"), "must be named"),
        (ExtraColumn("ebv", "float32"), "every shard has"),
        (ExtraColumn("image_xxh3", "uint64"), "every shard has"),
        (ExtraColumn("class", "S6"), "a condition cannot use"),
        (ExtraColumn("sky_sigma_r", "float32"), "'sky_sigma_r' is taken"),
        (ExtraColumn("a", "float16"), "of type float16"),
        (ExtraColumn("a", "object"), "of type object"),
        (ExtraColumn("a", "S65"), "of type S65"),
        (ExtraColumn("a", "S0"), "of type S0"),
        (ExtraColumn("a", ">f8"), "of type >f8"),
        (ExtraColumn("a", "int8", "m\n"), "a unit that is not printable"),
        (ExtraColumn("a", "int8", "", (3,)), "has shape"),
        (ExtraColumn("a", "int8", "", (5, 16, 16)), "has shape"),
        (ExtraColumn("mask", "bool"), "want uint8"),
        (mask_column(5, 15), "want uint8"),
        (variance_column(4, 16), "want float16"),
    ],
)
def test_a_column_that_cannot_be_stored_is_refused(column: ExtraColumn, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        Header(tuple("ugriz"), 16, 0.4, extra=(column,))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_two_columns_of_one_name_in_conditions_are_refused() -> None:
    wide, narrow = ExtraColumn("fwhm", "float32", "", (5,)), ExtraColumn("fwhm_r", "float32")
    for columns in ((wide, narrow), (narrow, wide), (wide, wide)):
        with pytest.raises(BadInput, match="is taken: rename the column"):
            Header(tuple("ugriz"), 16, 0.4, extra=columns)


@pytest.mark.parametrize(
    ("dtype", "values", "says"),
    [
        ("int8", [1, 300], "int8 cannot hold"),
        ("uint8", [1, -1], "uint8 cannot hold"),
        ("int64", [1.0, 2.0], "holds float64"),
        ("float32", [1.0, 1e300], "float32 cannot hold"),
        ("bool", [0, 1], "holds int64"),
        ("S2", [b"abc", b"a"], "S2 cannot hold"),
        ("float32", ["a", "b"], "holds <U1"),
        ("float32", [1.0], "of shape (1,)"),
        ("float32", [[1.0], [2.0]], "of shape (2, 1)"),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused(
    tmp_path: Path, dtype: str, values: list[Any], says: str
) -> None:
    header = Header(tuple("ugriz")[:BANDS], SIDE, 0.4, extra=(ExtraColumn("a", dtype),))
    stamps = replace(extra_stamps(2), extra={"a": np.array(values)})
    with pytest.raises(BadInput) as caught, DatasetWriter(tmp_path / "d", header, 8, {}) as writer:
        writer.append(stamps)
    assert says in str(caught.value) and not (tmp_path / "d" / MANIFEST).exists()


def test_values_are_those_of_the_header(tmp_path: Path) -> None:
    header = Header(tuple("ugriz")[:BANDS], SIDE, 0.4, extra=(ExtraColumn("a", "float32"),))
    for values in ({}, {"a": np.zeros(2), "b": np.zeros(2)}, {"b": np.zeros(2)}):
        stamps = replace(extra_stamps(2), extra=values)
        with (
            pytest.raises(BadInput, match="extra column '[ab]' is (missing|not declared)"),
            DatasetWriter(tmp_path / "d", header, 8, {}) as writer,
        ):
            writer.append(stamps)


def test_rounding_and_unknown_values_are_allowed(tmp_path: Path) -> None:
    header = Header(tuple("ugriz")[:BANDS], SIDE, 0.4, extra=(ExtraColumn("a", "float32"),))
    values = np.array([0.1, np.nan, np.inf])
    with DatasetWriter(tmp_path / "d", header, 8, {}) as writer:
        writer.append(replace(extra_stamps(3), extra={"a": values}))
    np.testing.assert_array_equal(load(tmp_path / "d").extra["a"], values.astype(np.float32))


@given(st.integers(0, 3), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_a_mask_is_packed_and_unpacked(n: int, side: int, seed: int) -> None:
    bad = np.random.default_rng(seed).random((n, 2, side, side)) < 0.4
    packed = extra.pack_mask(bad)
    assert packed.dtype == np.uint8 and packed.shape == (n, *mask_column(2, side).shape)
    np.testing.assert_array_equal(extra.unpack_mask(packed, side), bad)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": []},
        {"version": 1},
        {"extra": [{"name": "petro_r", "dtype": "float32", "unit": "mag", "shape": []}]},
        {"extra": [{"name": "../a", "dtype": "float32", "unit": "", "shape": []}]},
        {"extra": [{"name": "a", "dtype": "float32", "unit": "", "shape": [1 << 40]}]},
        {"extra": [{"name": "a", "dtype": "O", "unit": "", "shape": []}]},
        {"extra": [{"name": "a"}]},
        {"extra": {"a": "float32"}},
    ],
)
def test_a_manifest_with_other_columns_is_refused(folder: Path, tmp_path: Path, change: Any) -> None:
    changed = copy(folder, tmp_path / "d")
    tree = json.loads((changed / MANIFEST).read_text())
    (changed / MANIFEST).write_text(json.dumps({**tree, **change}))
    with pytest.raises(BadInput, match=r"manifest\.json: not a manifest"):
        read_manifest(changed)


def write_foreign(path: Path, n: int = 6, **arrays: Any) -> None:
    stamps = extra_stamps(n)
    with h5py.File(path, "w") as file:
        file.attrs.update(bands=list("ugr"), pixel_scale=0.4)
        for name in COLUMNS:
            file[name] = getattr(stamps, name)
        for name, values in arrays.items():
            file[name] = values


def test_arrays_of_foreign_shards_become_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "mag": np.arange(6.0),
        "flags": np.arange(6, dtype=np.int16),
        "clean": np.arange(6) % 2 == 0,
        "spectype": np.array([b"GALAXY", b"QSO"] * 3),
        "fwhm": np.ones((6, 3), np.float32),
        "mask": extra.pack_mask(np.zeros((6, BANDS, SIDE, SIDE), np.bool_)),
    }
    for k, suffix in enumerate((".hdf5", ".h5")):
        path = tmp_path / f"shard-0000{k}{suffix}"
        write_foreign(
            path, **values, big=np.ones(6, ">f8"), wide=np.ones((6, 7)), names=["a"] * 6, few=[1, 2]
        )
        with h5py.File(path, "r+") as file:
            file.create_group("group")
            file["mag"].attrs["unit"] = "mag"
            del file["clean"]
            file.create_dataset("clean", data=values["clean"], chunks=(2,), compression="gzip")
            file["alone" if k else "single"] = np.ones(6)
            file["object_id"][:] += 100 * k
    manifest = index_folder(tmp_path)
    assert manifest.header.extra == (
        ExtraColumn("clean", "bool"),
        ExtraColumn("flags", "int16"),
        ExtraColumn("fwhm", "float32", "", (3,)),
        ExtraColumn("mag", "float64", "mag"),
        mask_column(BANDS, SIDE),
        ExtraColumn("spectype", "S6"),
    )
    said = capsys.readouterr().err
    assert all(f"'{name}'" in said for name in ("alone", "single", "big", "wide", "names"))
    assert not any(f"'{name}'" in said for name in ("few", "mag", "group"))
    verify(tmp_path, read_manifest(tmp_path))
    found = load(tmp_path)
    for name, expected in values.items():
        np.testing.assert_array_equal(found.extra[name], np.concatenate([expected, expected]))
    with h5py.File(tmp_path / "shard-00001.h5", "r+") as file:
        file["mag"][2] = 7
    with pytest.raises(BadInput, match=r"shard-00001\.h5: labels of rows 0 to 5: checksum differs"):
        load(tmp_path)


def test_a_column_whose_type_or_unit_differs_between_shards_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign(tmp_path / "shard-00000.hdf5", a=np.ones(6), b=np.ones(6))
    write_foreign(tmp_path / "shard-00001.hdf5", a=np.ones(6, np.float32), b=np.ones(6))
    with h5py.File(tmp_path / "shard-00001.hdf5", "r+") as file:
        file["b"].attrs["unit"] = "mag"
    assert index_folder(tmp_path).header.extra == ()
    said = capsys.readouterr().err
    assert "'a' is float32() [], in shard-00000.hdf5 float64() []: no extra column" in said
    assert "'b' is float64() [mag], in shard-00000.hdf5 float64() []: no extra column" in said


def test_one_shard_under_two_names_is_refused(tmp_path: Path) -> None:
    for suffix in (".h5", ".hdf5"):
        write_foreign(tmp_path / f"shard-00000{suffix}")
    with pytest.raises(BadInput, match=r"shard-00000\.h5: the same shard as shard-00000\.hdf5"):
        index_folder(tmp_path)
