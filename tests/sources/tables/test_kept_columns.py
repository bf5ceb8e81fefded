"""Columns of object tables that are kept: types, units, unknown values, names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import Catalogue, read_catalogue

BASE = {"object_id": [1, 2, 3], "ra": [1.0, 2.0, 3.0], "dec": [0.0, 0.1, 0.2]}


def keep(path: Path, **names: str) -> Catalogue:
    return read_catalogue(path, keep=names)


def described(table: Catalogue) -> dict[str, tuple[str, str]]:
    assert all(table.extra[one.name].dtype == np.dtype(one.dtype) for one in table.extra_columns)
    return {one.name: (one.dtype, one.unit) for one in table.extra_columns}


@pytest.mark.parametrize("name", ["t.fits", "t.vot"])
def test_types_and_units_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    table = Table(BASE)
    table["petro"] = MaskedColumn(np.array([17, 18, 19], np.float32), mask=[False, True, False], unit="mag")
    table["flags"] = np.array([1, 2, 2**40], np.int64)
    table["small"] = np.array([1, 2, -3], np.int16)
    table["clean"] = [True, False, True]
    table["class"] = ["GALAXY", "QSO", ""]
    options = {"format": "votable"} if name == "t.vot" else {}
    table.write(tmp_path / name, **options)
    found = keep(
        tmp_path / name, petro="petro", flags="flags", small="small", clean="clean", spectype="class"
    )
    assert described(found) == {
        "petro": ("float32", "mag"),
        "flags": ("int64", ""),
        "small": ("int16", ""),
        "clean": ("bool", ""),
        "spectype": ("S6", ""),
    }
    np.testing.assert_array_equal(found.extra["petro"], np.array([17, np.nan, 19], np.float32))
    assert found.extra["flags"].tolist() == [1, 2, 2**40] and found.extra["small"].tolist() == [1, 2, -3]
    assert found.extra["clean"].tolist() == [True, False, True]
    assert found.extra["spectype"].tolist() == [b"GALAXY", b"QSO", b""]
    part = found[np.array([2, 0])]
    assert part.extra["flags"].tolist() == [2**40, 1] and part.extra_columns == found.extra_columns


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (["1", "-2", "9007199254740993"], "int64", [1, -2, 9007199254740993]),
        (["1", "", "2.5"], "float64", [1, np.nan, 2.5]),
        (["nan", "1e3", "4"], "float64", [np.nan, 1000, 4]),
        (["true", "False", "t"], "bool", [True, False, True]),
        (["GALAXY ", "", "é"], "S6", [b"GALAXY", b"", "é".encode()]),
        (["", "", ""], "S1", [b"", b"", b""]),
        (["99999999999999999999", "1", "2"], "float64", [1e20, 1, 2]),
        (["1_000", "1", "2"], "S5", [b"1_000", b"1", b"2"]),
    ],
)
def test_csv_cells_tell_the_type(tmp_path: Path, cells: list[str], dtype: str, values: list[Any]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("object_id,ra,dec,a\n" + "".join(f"{k},1,2,{cell}\n" for k, cell in enumerate(cells)))
    found = keep(path, b="a")
    assert found.extra_columns == (ExtraColumn("b", dtype),)
    np.testing.assert_array_equal(found.extra["b"], np.array(values, dtype))


def test_an_unknown_value_that_a_type_has_no_place_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("object_id,ra,dec,a,b\n1,2,3,4,true\n2,2,3,,\n")
    with pytest.raises(
        BadInput, match=r"line 3: a \(empty\) is unknown, for which a whole number has no place"
    ):
        keep(path, a="a")
    with pytest.raises(BadInput, match=r"line 3: b \(empty\) is unknown, for which a boolean has no place"):
        keep(path, a="b")
    table = Table(BASE)
    table["a"] = MaskedColumn(np.array([1, 2, 3], np.int32), mask=[False, True, False])
    table.write(tmp_path / "t.fits")
    with pytest.raises(
        BadInput, match=r"row 2: a \(empty\) is unknown, for which a whole number has no place"
    ):
        keep(tmp_path / "t.fits", a="a")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"class": "class"}, "--keep class: 'class' has a name that a condition cannot use: give another"),
        ({"ebv": "a"}, "'ebv' has the name of a column that every shard has"),
        ({"a-b": "a-b"}, "must be named by"),
        ({"b": "nothing"}, "no column nothing to keep: it has object_id, ra, dec, a, twice, twice, long"),
        ({"b": "twice"}, "two columns twice to keep"),
        ({"b": "long"}, f"line 2: long {'x' * 65} is longer than 64 bytes"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, names: dict[str, str], says: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"object_id,ra,dec,a,twice,twice,long\n1,2,3,4,5,6,{'x' * 65}\n")
    with pytest.raises(BadInput) as caught:
        read_catalogue(path, keep=names)
    assert says in str(caught.value)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    table = Table({**BASE, "a": np.array([1, 2, 3], np.complex64)})
    table.write(tmp_path / "t.fits")
    with pytest.raises(BadInput, match=r"t\.fits: column a is of type complex64: it cannot be kept"):
        keep(tmp_path / "t.fits", a="a")


def test_a_column_may_be_used_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("object_id,ra,dec,z\n1,2,3,0.5\n")
    found = keep(path, z_photo="z")
    assert found.z_spec.tolist() == [0.5] and found.extra["z_photo"].tolist() == [0.5]
