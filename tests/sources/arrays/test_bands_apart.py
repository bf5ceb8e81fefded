"""Bands in arrays of their own are read as one array of images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.files.array_file import open_array_file, parts_of
from tests.helpers.sources.array_files import pixels, write
from tests.helpers.sources.file_kinds import (
    BANDS,
    LABELS,
    SIZE,
    N,
    columns,
    ingest,
    map_of,
    write_hdf5,
    write_npy,
    write_npz,
    write_parquet,
    write_zarr,
)


@pytest.mark.parametrize("save", [write_hdf5, write_npz, write_npy, write_zarr, write_parquet])
@pytest.mark.parametrize("axes", ["band y x", "band x y"])
def test_bands_in_columns_of_their_own_are_those_of_one_column(
    tmp_path: Path, save: Callable[[Path, dict[str, Any]], Path], axes: str
) -> None:
    values = columns()
    images, ivar = values.pop("cutout"), np.ones((N, BANDS, SIZE, SIZE), np.float32)
    ivar[3, 1] = 0
    turned = (0, 2, 1) if axes == "band x y" else (0, 1, 2)
    for k, band in enumerate("grz"):
        values[f"cutout_{band}"] = images[:, k].transpose(turned)
        values[f"weight_{band}"] = ivar[:, k].transpose(turned)
        values[f"rms_{band}"] = np.arange(N) + 10.0 * k + 1
    one = map_of(
        **LABELS,
        images="cutout_{band}",
        axes=axes,
        bands=["z", "g", "r"],  # the names decide which is which
        inverse_variance="weight_{band}",
        sky_sigma_from="column",
        sky_sigma="rms_{band}",
        keep={"depth": "rms_{band}"},
    )
    stamps, skipped = ingest(tmp_path / "out", save(tmp_path, values), one)
    used = np.arange(N) != 3
    assert [(entry["object_id"], "the r band" in entry["reason"]) for entry in skipped] == [(10, True)]
    np.testing.assert_array_equal(stamps.images, images[used][:, [2, 0, 1]])
    np.testing.assert_array_equal(stamps.sky_sigma, np.arange(N)[used, None] + [21.0, 1.0, 11.0])
    np.testing.assert_array_equal(stamps.extra["depth"], stamps.sky_sigma)


def test_a_file_that_lacks_a_band_or_holds_another_shape_is_named(tmp_path: Path) -> None:
    plane = np.zeros((4, 12, 12), np.float32)
    one = map_of(images="image_{band}", mask="mask_{band}", optional=["mask"])
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "no field 'image_g'"),
        ({"image_g": plane, "image_z": plane}, "no field 'image_r': it has image_g, image_z"),
        ({"image_g": plane, "image_r": plane, "image_z": plane[:3]}, "'image_z' is float32(3, 12, 12), but"),
        (
            {"image_g": plane, "image_r": plane, "image_z": plane, "mask_r": plane > 0},  # not just without
            "no field 'mask_g'",
        ),
    ]
    for k, (fields, says) in enumerate(cases):
        with pytest.raises(BadInput) as error:
            ingest(tmp_path / str(k), write(tmp_path / f"{k}.hdf5", **fields), one)
        assert f"{k}.hdf5: {says}" in str(error.value)


def test_bands_in_files_of_their_own_are_all_files_of_their_rows(tmp_path: Path) -> None:
    values = {f"image_{band}": pixels(N, 1, SIZE, seed)[:, 0] for seed, band in enumerate("grz")}
    write_npy(tmp_path, values)
    one = map_of(images="image_{band}")
    with open_array_file(tmp_path / "a", one.bands) as opened:
        found = opened.rows("image_{band}", 2, 5)
    np.testing.assert_array_equal(found, np.stack([values[f"image_{b}"][2:5] for b in "grz"], axis=1))
    files, _ = parts_of(tmp_path / "a", one.columns, one.bands)
    assert [file.name for file in files] == ["image_g.npy", "image_r.npy", "image_z.npy"]
