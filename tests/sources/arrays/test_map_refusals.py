"""Maps that cannot be right, files that do not fit them, and damaged files are refused in a line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcphotoz.errors import BadInput
from tests.helpers.sources.file_kinds import (
    BANDS,
    LABELS,
    PLANES,
    N,
    columns,
    ingest,
    map_of,
    write_arrow,
    write_fits,
    write_hdf5,
    write_npz,
    write_parquet,
    write_zarr,
)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"images": "image_{band}", "bands": [], "band_column": "b"}, "name the bands in bands"),
        ({"images": "image_{band}", "axes": "y x band"}, '{band} in images: want axes = "band y x"'),
        ({"pixelscale": 1.0}, "unknown key 'pixelscale' (did you mean pixel_scale?); valid: images,"),
        ({"bands": []}, "bands: name them"),
        ({"bands": ["g", "g", "r"]}, "bands: one is there twice"),
        ({"pixel_scale": "0.2"}, "pixel_scale = '0.2': must be a valid number"),
        ({"axes": "y x c"}, 'axes = "y x c": want band, y and x'),
        ({"unit": "ADU"}, 'unit = "ADU": give zero_point'),
        ({"unit": "nJy", "zero_point": 25.0}, 'unit = "nJy" is calibrated'),
        ({"unit": "ADU", "zero_point": [1.0, 2.0]}, "zero_point: 2 for 3 bands"),
        ({"unit": "ADU", "zero_point": 270.0}, "zero_point = 270: must be an AB magnitude from 0 to 40"),
        ({"unit": "ADU", "zero_point": [27.0, 27.0, -1.0]}, "zero_point = -1: must be"),
        ({"unit": "ADU", "zero_points": {"hsc": 270.0}}, "zero_point = 270: must be"),
        ({"pixel_scale": 262.0}, "pixel_scale = 262: must be from 0.001 to 100 arcsec"),
        ({"pixel_scale": 7.3e-5}, "pixel_scale = 7.3e-05: must be from 0.001"),
        ({"unit": "Jy"}, "unit = 'Jy': must be 'nMgy', 'nJy'"),
        ({"sky_sigma": "sky"}, "sky_sigma: set sky_sigma_from to 'column'"),
        ({"sky_sigma_from": "inverse variance"}, "name it in inverse_variance"),
        ({"axes": "flat"}, "planes belong together"),
        (
            {"unit": "ADU", "axes": "flat", "bands": [], "pixel_scale": 0.0, "planes": [PLANES]},
            "give zero_point",
        ),
        ({"optional": "z_spec"}, "optional: want some of ebv, ra, dec"),
    ],
)
def test_a_map_that_cannot_be_right_is_one_line(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as error:
        map_of(**keys)
    assert str(error.value).startswith("map.toml: ") and says in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_do_not_fit_the_map_are_one_line(tmp_path: Path) -> None:
    values = columns()
    source = write_hdf5(tmp_path, values)
    cases = [
        (map_of(images="stamps"), "a.hdf5: no field 'stamps': it has cutout, name, sfd, specz"),
        (map_of(bands=["g", "r"]), "3 bands, not 2 (g, r)"),
        (map_of(axes="y x band", bands=["g"]), "holds images of 3 x 16 pixels"),
        (map_of(sky_sigma_from="column", sky_sigma="cutout"), "'cutout' has shape (9, 3, 16, 16)"),
        (map_of(ra="name2"), "no field 'name2'"),
    ]
    for k, (one, says) in enumerate(cases):
        with pytest.raises(BadInput) as error:
            ingest(tmp_path / str(k), source, one)
        assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (None, "no field 'scale': it has cutout, name, sfd, specz; is the map right?"),
        (np.full(N, b"0.262"), "'scale' is |S5, not numbers"),
        (np.full((N, 2), 0.262), "'scale' has shape (9, 2), but 9 images in 'cutout' need (9, 3) or (9,)"),
        (np.full(N, np.inf), "'scale' is inf in its first row: must be from 0.001 to 100 arcsec"),
        (np.full(N, np.nan), "'scale' is nan in its first row"),
        (np.full(N, 7.3e-5), "'scale' is 7.3e-05 in its first row"),  # in degrees
        (np.full((N, BANDS), 262.0), "'scale' is 262 in its first row"),  # in milliarcsec
    ],
)
def test_a_column_of_pixel_scales_is_checked_before_anything_is_written(
    tmp_path: Path, scale: Any, says: str
) -> None:
    values = columns() | ({} if scale is None else {"scale": scale})
    one = map_of(pixel_scale=0.0, pixel_scale_column="scale", **LABELS)
    with pytest.raises(BadInput) as error:
        ingest(tmp_path / "out", write_hdf5(tmp_path, values), one)
    assert f"a.hdf5: {says}" in str(error.value) and not (tmp_path / "out").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for writer in (write_npz, write_fits, write_parquet, write_arrow):
        folder = tmp_path / writer.__name__
        folder.mkdir()
        source = writer(folder, columns())
        with source.open("r+b") as file:
            file.truncate(source.stat().st_size // 2)
        with pytest.raises(BadInput, match=f"{source.name}: ") as error:
            ingest(folder / "out", source, map_of(**LABELS))
        assert "\n" not in str(error.value)


def test_zarr_stores_neither_unpickle_nor_follow_links(tmp_path: Path) -> None:
    source = write_zarr(tmp_path, columns())
    chunk = next(one for one in source.rglob("c/0*") if one.is_file() or one.is_symlink())
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="a link: it may lead outside the store"):
        ingest(tmp_path / "out", source, map_of(**LABELS))
    chunk.unlink()
    (tmp_path / "elsewhere").rename(chunk)
    metadata = source / "cutout" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"bytes"', '"numcodecs.pickle"'))
    with pytest.raises(BadInput, match="pickled objects, which are never loaded"):
        ingest(tmp_path / "out", source, map_of(**LABELS))


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(BadInput, match=r"pip install 'hpcphotoz\[arrays\]'"):
        ingest(tmp_path / "out", tmp_path / "a.parquet", map_of(**LABELS))
