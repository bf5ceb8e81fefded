"""A guessed map names what it found and what it did not; a file without images is refused in one line."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import read_manifest
from tests.helpers.datasets import load
from tests.helpers.sources.array_files import pixels, write

N, BANDS, SIZE = 9, 3, 16


def test_a_guessed_map_reads_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {
        "cutout": pixels(N, BANDS, SIZE),
        "specz": np.linspace(0.1, 0.3, N),
        "name": np.arange(N) + 7,
    }
    values["sfd"] = np.full(N, 0.02)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["Cutouts"], file["spec_z"] = values["cutout"].transpose(0, 2, 3, 1), values["specz"]
        file["ObjID"], file["E_BV"], file["RA"] = values["name"], values["sfd"], np.zeros(N)
        file.attrs["bands"], file.attrs["pixel_scale"] = ["g", "r", "z"], 0.262
        file.attrs["flux_unit"] = "nanomaggies"
    assert main(["ingest", "arrays", "--guess", str(tmp_path / "a.hdf5")]) == 0
    text = capsys.readouterr().out
    assert [line.split(" = ")[0] for line in text.splitlines() if "NOT FOUND" in line] == ["# dec"]
    (tmp_path / "map.toml").write_text(text)
    words = ["ingest", "arrays", tmp_path / "out", tmp_path / "a.hdf5", "--map", tmp_path / "map.toml"]
    assert main([str(word) for word in [*words, "--processes", 1, "--storage", "float32"]]) == 0
    stamps = load(tmp_path / "out", read_manifest(tmp_path / "out"))
    np.testing.assert_array_equal(stamps.images, values["cutout"])
    np.testing.assert_array_equal(stamps.object_id, values["name"])
    np.testing.assert_array_equal(stamps.z_spec, values["specz"].astype(np.float32))
    assert (stamps.ebv == np.float32(0.02)).all() and (stamps.ra == 0).all()


def test_a_guess_names_what_it_did_not_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.hdf5", things=pixels(4, 2, 12))
    assert main(["ingest", "arrays", "--guess", str(source)]) == 0
    text = capsys.readouterr().out
    missing = [line.strip("# ").split(" = ")[0] for line in text.splitlines() if "NOT FOUND" in line]
    assert missing == ["bands", "pixel_scale", "unit", "object_id", "z_spec", "ebv", "ra", "dec"]
    assert main(["ingest", "arrays", "--guess", str(write(tmp_path / "b.hdf5", z=np.zeros(4)))]) == 2
    assert "b.hdf5: no array of images" in capsys.readouterr().err
    assert main(["ingest", "arrays", "--guess", str(source), "--map", "hayat"]) == 2
    assert "leave out OUT, SRC and --map" in capsys.readouterr().err
    assert main(["ingest", "arrays", str(tmp_path / "out"), str(source)]) == 2
    assert "--map" in capsys.readouterr().err


def guessed(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The guessed map, and its text."""
    assert main(["ingest", "arrays", "--guess", str(path)]) == 0
    text = capsys.readouterr().out
    return tomllib.loads(text), text


def test_a_guess_is_not_a_map_before_it_is_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.hdf5", images=pixels(4, 2, 12))
    text = guessed(source, capsys)[1]
    words = ["ingest", "arrays", tmp_path / "out", source, "--map", tmp_path / "map.toml"]

    def ingest(text: str) -> tuple[int, str]:
        (tmp_path / "map.toml").write_text(text)
        code = main([*map(str, words), "--keep-unlabelled", "--processes", "1"])
        return code, capsys.readouterr().err

    code, error = ingest(text)
    assert code == 2 and "unit = '': must be 'nMgy', 'nJy', 'ADU' or 'counts/s'" in error
    text = text.replace('unit = ""', 'unit = "nJy"')
    code, error = ingest(text)
    assert code == 2 and "pixel_scale: give arcsec a pixel" in error
    assert ingest(text.replace("pixel_scale = 0.0", "pixel_scale = 0.2"))[0] == 0


@pytest.mark.parametrize(
    ("shape", "axes", "bands"),
    [
        ((4, 7, 12, 12), "band y x", 7),
        ((4, 12, 12, 7), "y x band", 7),
        ((4, 9, 8, 8), "band y x", 9),
        ((4, 8, 8, 9), "y x band", 9),
        ((4, 8, 8, 8), "band y x", 8),
        ((4, 12, 12), "y x", 1),
    ],
)
@pytest.mark.parametrize("dtype", [">f4", "u1", "<f2"])
def test_axes_are_told_by_the_two_that_are_equal(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: tuple[int, ...],
    axes: str,
    bands: int,
    dtype: str,
) -> None:
    found, _ = guessed(write(tmp_path / "a.hdf5", things=np.zeros(shape, dtype)), capsys)
    assert found["axes"] == axes and len(found["bands"]) == bands and found["images"] == "things"


@pytest.mark.parametrize("on_images", [True, False])
def test_attributes_of_the_file_or_of_the_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_images: bool
) -> None:
    source = write(tmp_path / "a.hdf5", flux=pixels(4, 3, 12))

    def change(**attributes: Any) -> dict[str, Any]:
        with h5py.File(source, "r+") as file:
            (file["flux"] if on_images else file).attrs.update(attributes)
        return guessed(source, capsys)[0]

    found = change(bands=np.array([b"g", b"r", b"z"]), pixel_scale=np.float32(0.262), unit="nMgy / pixel")
    assert (found["bands"], found["pixel_scale"], found["unit"]) == (["g", "r", "z"], 0.262, "nMgy")
    assert change(bands="grz")["bands"] == change(bands="g, r, z")["bands"] == ["g", "r", "z"]
    # Of other types or meanings they are as good as none: 10 nJy is no unit of a map.
    found = change(bands=7, pixel_scale="0.2 arcsec", unit="10 nJy")
    assert (found["bands"], found["pixel_scale"], found["unit"]) == (["band0", "band1", "band2"], 0.0, "")
    assert change(bands=np.zeros((2, 2)), pixel_scale=[1.0, 2.0], unit=3.5)["unit"] == ""
    assert change(pixel_scale=np.nan, bands=["g", "g", "r"])["pixel_scale"] == 0.0


def test_columns_that_do_not_fit_are_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of another number of rows, of text where numbers are needed, or of a type that is not read."""
    fields: dict[str, Any] = {
        "images": pixels(4, 2, 12),
        "z": np.zeros(3),
        "redshift": np.zeros(4),
        "ebv": np.array([b"0.1"] * 4),
        "objid": ["x1", "x2", "x3", "x4"],
        "ra": np.zeros((4, 2)),
        "catalogue": np.zeros(4, [("dec", "f8")]),
        "odd\nname = 1": np.zeros(4),
    }
    found, text = guessed(write(tmp_path / "a.hdf5", **fields), capsys)
    keys = ("z_spec", "object_id", "ebv", "ra", "dec", "name")
    assert [found.get(key) for key in keys] == ["redshift", "objid", None, None, None, None]
    assert "not read: 'catalogue' is of type" in text and "odd?name = 1 float64(4,)" in text


@pytest.mark.parametrize(
    ("name", "means"), [("mask", "usable"), ("bit_mask", "unusable"), ("flags", "unusable")]
)
def test_masks_and_inverse_variances_of_the_images_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, means: str
) -> None:
    ones = np.ones((4, 2, 12, 12), np.uint8)
    fields: dict[str, Any] = {"cutout": pixels(4, 2, 12), "ivar": ones.astype("f4"), name: ones}
    source = write(tmp_path / "a.hdf5", **fields)
    found, _ = guessed(source, capsys)
    assert (found["images"], found["inverse_variance"], found["mask"]) == ("cutout", "ivar", name)
    assert found["mask_true"] == means


@pytest.mark.parametrize(
    ("names", "images", "bands"),
    [
        ("image_z image_g image_r", "image_{band}", "g r z"),
        ("r/flux g/flux", "{band}/flux", "g r"),
        ("z g r", "{band}", "g r z"),
        ("F200W_sci F090W_sci", "{band}_sci", "F090W F200W"),
        ("sci_g sci_r err_g err_r", "err_{band}", "g r"),  # two of them: a comment names the other
        ("image_g mask_g image_r mask_r ivar_g ivar_r", "image_{band}", "g r"),
    ],
)
def test_arrays_of_one_band_each_are_one_set_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str, images: str, bands: str
) -> None:
    fields: dict[str, Any] = {name: np.zeros((4, 12, 12), np.float32) for name in names.split()}
    found, text = guessed(write(tmp_path / "a.hdf5", **fields), capsys)
    assert (found["images"], found["axes"]) == (images, "band y x") and found["bands"] == bands.split()
    assert ("2 arrays have this shape: err_{band}, sci_{band}." in text) == ("err_g" in fields)
    kinds = {key: found.get(key) for key in ("mask", "inverse_variance")}
    masked = {"mask": "mask_{band}", "inverse_variance": "ivar_{band}"}
    assert kinds == (masked if "mask_g" in fields else dict.fromkeys(masked))


def test_arrays_whose_names_show_no_bands_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plane: Any = np.zeros((4, 12, 12), np.float32)
    found, text = guessed(write(tmp_path / "a.hdf5", fluxg=plane, fluxr=plane), capsys)
    assert found["axes"] == "y x" and "2 arrays have this shape: fluxg, fluxr. If each is" in text
    assert "write {band} in images in place of its name" in text
    _, text = guessed(write(tmp_path / "b.hdf5", flux=plane, ivar=plane), capsys)
    assert "arrays have this shape" not in text


def test_other_arrays_of_the_images_shape_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {"cutout": pixels(4, 2, 12), "quality": np.ones((4, 2, 12, 12), np.uint8)}
    found, text = guessed(write(tmp_path / "a.hdf5", **fields), capsys)
    assert found["images"] == "cutout" and "mask" not in found
    assert "2 arrays have this shape: cutout, quality. One of" in text


def test_longer_names_that_hold_a_usual_one_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"object_id": "sdss_object_id", "z_spec": "z_best_2", "ebv": "E(B-V)_sfd"}
    columns: dict[str, Any] = {name: np.arange(4.0) for name in names.values()}
    columns["sdss_object_id"] = np.arange(4)
    found, _ = guessed(write(tmp_path / "a.hdf5", cutout=pixels(4, 2, 12), **columns), capsys)
    assert {key: found.get(key) for key in names} == names
    found, _ = guessed(write(tmp_path / "b.hdf5", cutout=pixels(4, 2, 12), z=np.zeros(4), **columns), capsys)
    assert found["z_spec"] == "z"


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("id,z\n1,0.1\n")


def _without_arrays(path: Path) -> None:
    h5py.File(path, "w").close()


def _compound(path: Path) -> None:
    write(path, rows=np.zeros(4, [("z", "f4"), ("image", "f4", (5, 16, 16))]))


def _complex(path: Path) -> None:
    write(path, images=np.zeros((4, 5, 16, 16), np.complex64), z=np.zeros(4))


def _oblong(path: Path) -> None:
    write(path, images=np.zeros((4, 5, 16, 18), np.float32))


def _archive(path: Path) -> None:
    __import__("zipfile").ZipFile(path, "w").writestr("data.pkl", b"")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_nothing, "not a readable HDF5 file (no file signature): want HDF5, npz,"),
        (_text, "not a readable HDF5 file (no file signature): want HDF5, npz,"),
        (_without_arrays, "no array of images (N, band, y, x), (N, y, x, band) or (N, y, x)"),
        (_compound, "it has nothing else; 'rows' is of type"),
        (_complex, "it has z float64(4,); 'images' is of type complex64: want plain numbers"),
        (_oblong, "it has images float32(4, 5, 16, 18)"),
        (_archive, "an archive without npy arrays"),
        (Path.mkdir, "a folder without npy files or Zarr"),
    ],
)
def test_files_without_images_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Any], says: str
) -> None:
    make(tmp_path / "a.dat")
    assert main(["ingest", "arrays", "--guess", str(tmp_path / "a.dat")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path / 'a.dat'}: {says}" in error or says in error
    assert "a.dat" in error
