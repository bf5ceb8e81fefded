"""Columns of files of arrays that are kept: types, units, text, rows left out, and refusals."""

import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.table import Table

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.merge import merge_datasets
from hpcphotoz.data.read.rows import read_rows, verify
from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.array_map import parse_map
from hpcphotoz.sources.arrays.ingest_arrays import ingest_arrays
from tests.helpers.datasets import load
from tests.helpers.sources.array_files import hayat, ingest, ingest_and_load, labels, mmu, pixels

N = 7


def with_units(path: Path, **units: str) -> Path:
    with h5py.File(path, "r+") as file:
        for name, unit in units.items():
            file[name].attrs["unit"] = unit
    return path


def test_types_units_and_rows_are_those_of_the_files(tmp_path: Path) -> None:
    ebv = np.full((N, 5), 0.1)
    ebv[2] = np.nan  # left out
    text = np.array(["GALAXY", "QSO ", "STAR", "é", "", "GALAXY", "GALAXY"], object)
    values: dict[str, Any] = {
        "petro": np.arange(N, dtype=">f4") + 14.5,
        "half": np.arange(N, dtype=np.float16),
        "flags": np.arange(N, dtype=">i2") - 3,
        "clean": np.arange(N) % 2 == 0,
        "fwhm": np.arange(N * 5, dtype=np.float64).reshape(N, 5),
        "class": np.array(text, h5py.string_dtype()),
    }
    first = hayat(tmp_path / "a.h5", N, 16, e_bv=ebv, **values)
    values["class"] = np.array([b"SUPERNOVA"] * N)
    second = hayat(tmp_path / "b.h5", N, 16, ObjID=np.arange(N), **values)
    for path in (first, second):
        with_units(path, petro="mag", fwhm="arcsec")
    keep = {"petro": "petro", "half": "half", "flags": "flags", "clean": "clean", "fwhm": "fwhm"}
    options = {"keep": {**keep, "spectype": "class"}, "shard_rows": 5}
    manifest, stamps, _ = ingest_and_load(tmp_path / "out", [first, second], "hayat", **options)
    assert manifest.header.extra == (
        ExtraColumn("petro", "float32", "mag"),
        ExtraColumn("half", "float32"),
        ExtraColumn("flags", "int16"),
        ExtraColumn("clean", "bool"),
        ExtraColumn("fwhm", "float64", "arcsec", (5,)),
        ExtraColumn("spectype", "S9"),
    )
    verify(tmp_path / "out", manifest)
    rows = np.array([0, 1, 3, 4, 5, 6, *range(N)])
    for name in ("petro", "half", "flags", "clean", "fwhm"):
        np.testing.assert_array_equal(stamps.extra[name], np.asarray(values[name])[rows])
    assert stamps.extra["spectype"][:6].tolist() == [
        b"GALAXY",
        b"QSO",
        "é".encode(),
        b"",
        b"GALAXY",
        b"GALAXY",
    ]
    assert set(stamps.extra["spectype"][6:].tolist()) == {b"SUPERNOVA"}
    assert manifest.provenance["kept"]["spectype"] == "column 'class'"


def test_the_surveys_own_cut_on_a_published_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cut of Pasquet et al. 2019 on their record array, from `ingest table` to a condition."""
    rows, n = labels(40), 40
    rng = np.random.default_rng(2)
    rows["dered_petro_r"], rows["primtarget"] = rng.uniform(16.5, 19, n), rng.choice([0, 32, 64, 96], n)
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "cube.npy", pixels(n, 5, 16).transpose(0, 2, 3, 1))
    np.save(tmp_path / "set" / "labels.npy", rows)
    words = ["ingest", "table", str(tmp_path / "out"), "--format", "pasquet", str(tmp_path / "set")]
    words += ["--processes", "1", "--keep", "labels/dered_petro_r", "target=labels/primtarget"]
    assert main(words) == 0
    manifest = read_manifest(tmp_path / "out")
    where = Predicate.parse(
        "dered_petro_r <= 17.8 and target >= 64", manifest.header.bands, manifest.header.extra
    )
    found = np.concatenate(
        [part.object_id for part in read_rows(tmp_path / "out", manifest, row_filter=where)]
    )
    expected = rows["specObjID"][(rows["dered_petro_r"] <= np.float32(17.8)) & (rows["primtarget"] >= 64)]
    assert 0 < len(expected) < n
    np.testing.assert_array_equal(found, expected)


def write_npz(folder: Path, values: dict[str, Any]) -> Path:
    np.savez(folder / "a.npz", **values)
    return folder / "a.npz"


def write_fits(folder: Path, values: dict[str, Any]) -> Path:
    table = Table(values)
    table["mag"].unit = "mag"
    table.write(folder / "a.fits")
    return folder / "a.fits"


def write_parquet(folder: Path, values: dict[str, Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({name: pyarrow.array(np.asarray(one).tolist()) for name, one in values.items()})
    parquet.write_table(table, folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def write_zarr(folder: Path, values: dict[str, Any]) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "a.zarr"), mode="w", zarr_format=2)
    for name, value in values.items():
        stored = value.astype("S") if value.dtype.kind == "U" else value
        group.create_array(name, data=stored, chunks=(4, *value.shape[1:]))
    return folder / "a.zarr"


@pytest.mark.parametrize("writer", [write_npz, write_fits, write_parquet, write_zarr])
def test_every_kind_of_file(tmp_path: Path, writer: Callable[[Path, dict[str, Any]], Path]) -> None:
    values: dict[str, Any] = {
        "cutout": pixels(N, 3, 16),
        "mag": np.linspace(17, 18, N),
        "clean": np.arange(N) > 2,
        "type": np.array(["GALAXY", "QSO", "", "B", "STAR", "GALAXY", "QSO"]),
    }
    columns = parse_map({"images": "cutout", "bands": ["g", "r", "z"], "pixel_scale": 0.262}, "map.toml")
    keep = {"mag": "mag", "clean": "clean", "spectype": "type"}
    manifest, _ = ingest_arrays(
        tmp_path / "out",
        [writer(tmp_path, values)],
        columns,
        "map.toml",
        keep=keep,
        keep_unlabelled=True,
        processes=1,
        shard_rows=4,
    )
    unit = "mag" if writer is write_fits else ""
    assert manifest.header.extra == (
        ExtraColumn("mag", "float64", unit),
        ExtraColumn("clean", "bool"),
        ExtraColumn("spectype", "S6"),
    )
    found = list(read_rows(tmp_path / "out", manifest))
    np.testing.assert_array_equal(np.concatenate([part.extra["mag"] for part in found]), values["mag"])
    np.testing.assert_array_equal(np.concatenate([part.extra["clean"] for part in found]), values["clean"])
    text = np.concatenate([part.extra["spectype"] for part in found]).tolist()
    assert text == [one.encode() for one in values["type"].tolist()]


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"a": "nothing"}, "no field 'nothing': it has"),
        ({"ebv": "ra"}, "--keep ra: 'ebv' has the name of a column that every shard has"),
        ({"class": "ra"}, "a condition cannot use: give another"),
        ({"wide": "wide"}, "'wide' is float64(7, 2), and cannot be kept: want one value an object"),
        ({"few": "few"}, "'few' is int64(3,), and cannot be kept: want one value an object"),
        ({"long": "long"}, "row 4: 'long' is longer than 64 bytes"),
        ({"words": "words"}, "want one text an object"),
        ({"sky_sigma_r": "ra"}, "extra column 'sky_sigma_r': the name 'sky_sigma_r' is taken"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, keep: dict[str, str], says: str) -> None:
    other = {"wide": np.ones((N, 2)), "few": np.arange(3), "long": np.array([b"a"] * 4 + [b"b" * 65] * 3)}
    path = hayat(tmp_path / "a.h5", N, 16, **other, words=np.full((N, 5), b"a"))
    with pytest.raises(BadInput) as caught:
        ingest(tmp_path / "out", [path], "hayat", keep=keep)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_whose_columns_differ_are_refused(tmp_path: Path) -> None:
    first = hayat(tmp_path / "a.h5", N, 16, mag=np.ones(N, np.float32))
    second = hayat(tmp_path / "b.h5", N, 16, ObjID=np.arange(N), mag=np.ones(N))
    with pytest.raises(BadInput, match=r"b\.h5: 'mag' is float64, but in .*a\.h5 float32"):
        ingest(tmp_path / "out", [first, second], "hayat", keep={"mag": "mag"})
    third = hayat(tmp_path / "c.h5", N, 16, ObjID=np.arange(N), mag=np.ones(N, np.float32))
    with_units(third, mag="mag")
    with pytest.raises(BadInput, match=r"c\.h5: 'mag' is float32, mag, but in .*a\.h5 float32"):
        ingest(tmp_path / "out", [first, third], "hayat", keep={"mag": "mag"})


def test_appended_text_may_be_narrower_than_the_datasets_but_not_wider(tmp_path: Path) -> None:
    text = [b"GALAXY", b"QSO", b"WHITEDWARF"]
    paths = [
        hayat(tmp_path / f"{k}.h5", N, 16, ObjID=np.arange(N) + N * k, cls=np.full(N, cls), mag=np.ones(N))
        for k, cls in enumerate(text)
    ]
    keep = {"mag": "mag", "cls": "cls"}
    ingest(tmp_path / "out", paths[:1], "hayat", keep=keep)
    manifest, _ = ingest(tmp_path / "out", paths[1:2], "hayat", keep=keep, append=True)
    assert manifest.header.extra[1].dtype == "S6"
    verify(tmp_path / "out", manifest)
    assert load(tmp_path / "out").extra["cls"].tolist() == text[:1] * N + text[1:2] * N
    with pytest.raises(BadInput, match="columns 'cls' S10, but 'cls' S6 in the dataset"):
        ingest(tmp_path / "out", paths[2:], "hayat", keep=keep, append=True)
    ingest(tmp_path / "other", paths[1:2], "hayat", keep=keep)
    with pytest.raises(BadInput, match="extra columns 'cls' S3, but 'cls' S6 in "):
        merge_datasets(tmp_path / "merged", [tmp_path / "out", tmp_path / "other"])


def test_values_a_band_are_those_of_the_bands_that_are_used(tmp_path: Path) -> None:
    fwhm = np.arange(16, dtype=np.float32).reshape(4, 4)
    bands = np.array([[f"des-{band}".encode() for band in "griz"]] * 4)
    bands[2] = bands[2][::-1]  # left out: it names its bands in another order
    path = with_units(
        mmu(tmp_path / "a.h5", [1, 2, 3, 4], image_psf_fwhm=fwhm, image_band=bands), image_psf_fwhm="arcsec"
    )
    tree = {
        "images": "image_array",
        "band_column": "image_band",
        "bands": ["des-z", "des-g"],
        "pixel_scale": 0.262,
        "object_id": "object_id",
        "keep": {"psf_fwhm": "image_psf_fwhm"},
    }
    options: dict[str, Any] = {"keep_unlabelled": True, "processes": 1}
    manifest, skipped = ingest_arrays(tmp_path / "out", [path], parse_map(tree, "m"), "m", **options)
    assert [entry["row"] for entry in skipped] == [2]
    assert manifest.header.extra == (ExtraColumn("psf_fwhm", "float32", "arcsec", (2,)),)
    kept = load(tmp_path / "out", manifest).extra["psf_fwhm"]
    np.testing.assert_array_equal(kept, fwhm[[0, 1, 3]][:, [3, 0]])


def test_columns_of_the_map_and_of_the_option_are_kept(tmp_path: Path) -> None:
    path = hayat(tmp_path / "a.h5", N, 16, mag=np.arange(N, dtype=np.float32), flag=np.ones(N, np.int16))
    tree = tomllib.loads((resources.files("hpcphotoz.sources.arrays") / "maps/hayat.toml").read_text())
    one = parse_map({**tree, "keep": {"r": "mag", "f": "flag"}}, "m")
    manifest, _ = ingest_arrays(tmp_path / "out", [path], one, "m", keep={"f": "mag"}, processes=1)
    assert [column.name for column in manifest.header.extra] == ["r", "f"]
    assert manifest.provenance["kept"] == {"r": "column 'mag'", "f": "column 'mag'"}
    with pytest.raises(BadInput, match="no field 'mug'"):
        wrong = parse_map({**tree, "keep": {"r": "mug"}}, "m")
        ingest_arrays(tmp_path / "wrong", [path], wrong, "m", processes=1)
    with pytest.raises(BadInput, match="'z_spec' has the name of a column that every shard has"):
        wrong = parse_map({**tree, "keep": {"z_spec": "mag"}}, "m")
        ingest_arrays(tmp_path / "wrong", [path], wrong, "m", processes=1)
