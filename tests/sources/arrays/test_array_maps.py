"""Files of any kind are read by a map: axes, types, units, noise, masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.array_map import parse_map
from tests.helpers.sources.array_files import ingest_and_load, pixels, write
from tests.helpers.sources.file_kinds import (
    LABELS,
    SIZE,
    N,
    columns,
    ingest,
    map_of,
    write_arrow,
    write_fits,
    write_hdf5,
    write_npy,
    write_npz,
    write_parquet,
    write_record_npy,
    write_stream,
    write_zarr,
)

WRITERS: list[Callable[[Path, dict[str, Any]], Path]] = [write_hdf5, write_npz, write_npy, write_record_npy]
WRITERS += [write_fits, write_zarr, write_parquet, write_arrow, write_stream]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda one: one.__name__.removeprefix("write_"))
def test_every_kind_of_file_gives_the_same_stamps(
    tmp_path: Path, writer: Callable[[Path, dict[str, Any]], Path]
) -> None:
    values = columns()
    source = writer(tmp_path, values)
    under = "rows/" if source.name == "rows.npy" else ""
    names = {key: f"{under}{name}" for key, name in {"images": "cutout", **LABELS}.items()}
    stamps, skipped = ingest(tmp_path / "out", source, map_of(**names), shard_rows=5)
    np.testing.assert_array_equal(stamps.images, values["cutout"])
    np.testing.assert_array_equal(stamps.z_spec, values["specz"].astype(np.float32))
    np.testing.assert_array_equal(stamps.object_id, values["name"])
    assert not skipped and (stamps.ebv == np.float32(0.02)).all() and np.isnan(stamps.ra).all()


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", ">i4", "u2"])
@pytest.mark.parametrize("axes", ["band y x", "y x band", "x y band", "x band y"])
def test_axes_and_types_are_those_of_the_file(tmp_path: Path, axes: str, dtype: str) -> None:
    values = columns()
    values["cutout"] = np.round(1000 + 100 * values["cutout"])
    places = [0, *(1 + ("band", "y", "x").index(axis) for axis in axes.split())]
    stored = values | {"cutout": values["cutout"].transpose(places).astype(dtype)}
    stored["specz"] = values["specz"].astype(">f8")
    stored["name"] = values["name"].astype(">i8")
    stamps, _ = ingest(tmp_path / "out", write_hdf5(tmp_path, stored), map_of(axes=axes, **LABELS))
    wanted = values["cutout"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(stamps.images, wanted)
    np.testing.assert_array_equal(stamps.object_id, values["name"])


def test_images_of_one_band_need_no_axis_of_bands(tmp_path: Path) -> None:
    values = columns() | {"cutout": pixels(N, 1, SIZE)[:, 0]}
    stamps, _ = ingest(
        tmp_path / "out", write_hdf5(tmp_path, values), map_of(axes="x y", bands="r", **LABELS)
    )
    np.testing.assert_array_equal(stamps.images[:, 0], values["cutout"].transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("keys", "per_unit"),
    [
        ({"unit": "nJy"}, [10**-3.56] * 3),
        ({"unit": "ADU", "zero_point": 27.0}, [10**-1.8] * 3),
        ({"unit": "counts/s", "zero_point": [22.5, 25.0, 20.0]}, [1, 0.1, 10]),
        ({"unit": "ADU", "zero_points": {"des": 30.0}, "bands": ["des-g", "des-r", "des-z"]}, [1e-3] * 3),
    ],
)
def test_units_become_nanomaggies(tmp_path: Path, keys: dict[str, Any], per_unit: list[float]) -> None:
    """1 nJy is AB magnitude 31.4, 1 nanomaggy 22.5."""
    values = columns()
    stamps, _ = ingest(tmp_path / "out", write_hdf5(tmp_path, values), map_of(**keys, **LABELS))
    wanted = values["cutout"] * np.array(per_unit)[:, None, None]
    np.testing.assert_allclose(stamps.images, wanted, rtol=1e-6)
    sigma = np.array([1, 2, 3]) * per_unit
    # 112 outer pixels: 7 % of noise in each estimate, 2.3 % in the mean of nine
    np.testing.assert_allclose(stamps.sky_sigma.mean(axis=0), sigma, rtol=0.1)


def test_sky_sigma_of_a_column_of_inverse_variance_and_of_unmasked_pixels(tmp_path: Path) -> None:
    values = columns()
    values["sky"] = np.tile([1.0, 2.0, 3.0], (N, 1))
    values["ivar"] = np.tile(np.array([1, 1 / 4, 1 / 9])[:, None, None], (N, 1, SIZE, SIZE))
    values["ivar"][2, 1] = 0
    values["bad"] = np.zeros((N, SIZE, SIZE), np.uint8)
    values["bad"][:, 0, 3] = 4
    stored = values | {"cutout": values["cutout"].copy()}
    stored["cutout"][:, :, 0, 3:] += 1e3  # half of the bright pixels are flagged
    source = write_hdf5(tmp_path, stored)
    unit = {"unit": "ADU", "zero_point": 25.0, **LABELS}
    one = map_of(sky_sigma_from="column", sky_sigma="sky", **unit)
    stamps, _ = ingest(tmp_path / "column", source, one)
    np.testing.assert_allclose(stamps.sky_sigma, np.tile([0.1, 0.2, 0.3], (N, 1)), rtol=1e-6)
    one = map_of(sky_sigma_from="inverse variance", inverse_variance="ivar", **unit)
    stamps, skipped = ingest(tmp_path / "ivar", source, one)
    np.testing.assert_allclose(stamps.sky_sigma, np.tile([0.1, 0.2, 0.3], (N - 1, 1)), rtol=1e-6)
    assert [entry["reason"] for entry in skipped] == ["the sky sigma is not known in the r band"]
    values["bad"][:, 0, 3:] = 4
    clean = write(tmp_path / "clean.hdf5", cutout=values["cutout"], bad=values["bad"], name=values["name"])
    bright = write(tmp_path / "lit.hdf5", cutout=stored["cutout"], bad=values["bad"], name=values["name"])
    one = map_of(sky_sigma_from="unmasked pixels", mask="bad", mask_true="unusable", object_id="name")
    with pytest.raises(BadInput, match="too many pixels are masked"):
        ingest(tmp_path / "masked", bright, one)
    inner = {"crop": 8}  # which has no flagged pixel
    lit, _ = ingest(tmp_path / "lit", bright, one, **inner)
    np.testing.assert_array_equal(lit.sky_sigma, ingest(tmp_path / "clean", clean, one, **inner)[0].sky_sigma)


@pytest.mark.parametrize("true", ["usable", "unusable"])
def test_nan_in_a_mask_is_unusable_and_in_z_known_unknown(tmp_path: Path, true: str) -> None:
    mask = np.full((N, SIZE, SIZE), float(true == "usable"))
    mask[1, 2:9, 2:9] = np.nan
    known = np.ones(N)
    known[2] = np.nan
    path = write_hdf5(tmp_path, columns() | {"mask": mask, "known": known})
    array_map = map_of(**LABELS, mask="mask", mask_true=true, z_known="known")
    stamps, skipped = ingest(tmp_path / "out", path, array_map)
    assert [entry["row"] for entry in skipped] == [1] and "masked" in skipped[0]["reason"]
    assert np.flatnonzero(np.isnan(stamps.z_spec)).tolist() == [1]


def test_bands_are_chosen_by_name_from_those_of_each_row(tmp_path: Path) -> None:
    values = columns()
    values["filters"] = np.array([[b"f115w", b"f277w", b"f356w"]] * N)
    values["filters"][4] = [b"f115w", b"f356w", b"f277w"]
    values["scale"] = np.tile(np.array([0.02, 0.04, 0.04], np.float32), (N, 1))
    source = write_hdf5(tmp_path, values)
    keys = {"band_column": "filters", "pixel_scale": 0.0, "pixel_scale_column": "scale", **LABELS}
    stamps, skipped = ingest(tmp_path / "out", source, map_of(**keys | {"bands": ["f356w", "f277w"]}))
    manifest = read_manifest(tmp_path / "out")
    assert manifest.header.bands == ("f356w", "f277w") and manifest.header.pixel_scale == 0.04
    kept = np.arange(N) != 4
    np.testing.assert_array_equal(stamps.images, values["cutout"][kept][:, [2, 1]])
    assert [(entry["row"], entry["reason"]) for entry in skipped] == [
        (4, "another band in place of the f277w band")
    ]
    with pytest.raises(BadInput, match="another pixel scale in the f277w band"):
        ingest(tmp_path / "mixed", source, map_of(**keys | {"bands": []}))


def test_pita_has_no_ids_and_flags_known_redshifts(tmp_path: Path) -> None:
    known = np.array([1, 0, 1, 1, 1, 1, 1], np.uint8)
    for k in range(2):
        write(
            tmp_path / "in" / f"{k}.hdf5",
            images=pixels(7, 5, SIZE, k),
            ebvs=np.full(7, 0.05, np.float32),
            redshifts=np.linspace(0.1, 0.2, 7),
            use_redshift_1=known,
        )
    _, stamps, _ = ingest_and_load(tmp_path / "out", [tmp_path / "in"], "pita", shard_rows=5)
    np.testing.assert_array_equal(stamps.object_id, np.arange(14))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(stamps.z_spec)), [1, 8])


def test_jwst_form_of_the_multimodal_universe(tmp_path: Path) -> None:
    bands = np.array([[b"f277w", b"f444w"]] * 4)
    path = write(
        tmp_path / "001-of-001.hdf5",
        {"compression": "lzf", "chunks": True},
        image_flux=pixels(4, 2, 24),
        image_ivar=np.ones((4, 2, 24, 24), np.float32),
        image_mask=np.ones((4, 2, 24, 24), np.bool_),
        image_band=bands,
        image_scale=np.full((4, 2), 0.04, np.float32),
        object_id=np.arange(4),
        ra=np.zeros(4),
        dec=np.zeros(4),
    )
    manifest, stamps, _ = ingest_and_load(tmp_path / "out", [path], "mmu-jwst", keep_unlabelled=True)
    assert manifest.header.bands == ("f277w", "f444w") and manifest.header.pixel_scale == 0.04
    np.testing.assert_allclose(stamps.images, pixels(4, 2, 24) * 10**-2.56, rtol=1e-6)  # 10 nJy: 28.9


def test_flattened_stamps_of_mixed_size_come_onto_the_finest_grid(tmp_path: Path) -> None:
    """Of Gaussians much wider than any pixel, interpolation keeps flux and place in every band."""
    flux, n, rng = np.array([3.0, 4.0, 50.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]), 3, np.random.default_rng(0)
    planes = [(32, 1.5)] * 2 + [(170, 0.25)] * 5 + [(32, 2.75)] * 2
    rows = []
    for (size, scale), total in zip(planes, flux, strict=True):
        at = (np.arange(size) - (size - 1) / 2) * scale
        profile = np.exp(-(((at - 2) ** 2)[:, None] + (at + 3) ** 2) / 2 / 4**2)  # 4 arcsec; y 2, x -3
        noise = 1e-4 * scale**2 * rng.normal(size=(n, size, size))
        rows.append((total * scale**2 / (2 * np.pi * 4**2) * profile + noise).reshape(n, -1))
    zero_point = np.array([20.08, 18.82, 25, 25, 25, 25, 25, 25.199, 25.839])
    counts = [row / 10 ** (0.4 * (22.5 - zero)) for row, zero in zip(rows, zero_point, strict=True)]
    folder = tmp_path / "in"
    folder.mkdir()
    arrays = {"images": np.concatenate(counts, axis=1), "z": np.full(n, 0.1), "object_id": np.arange(n)}
    for name, value in {**arrays, "ebv_csfd": np.zeros(n)}.items():
        np.save(folder / f"{name}.npy", value)
    manifest, stamps, _ = ingest_and_load(tmp_path / "out", [folder], "mantis-shrimp", crop=128)
    assert manifest.header.bands == ("NUV", "FUV", "g", "r", "i", "z", "y", "W1", "W2")
    assert manifest.header.pixel_scale == 0.25
    at = (np.arange(128) - 63.5) * 0.25
    sums = stamps.images.sum(axis=(2, 3), dtype=np.float64)
    # Linear interpolation widens a Gaussian of 4 arcsec by (2.75 / 4)^2 / 12: no flux is lost in 16 arcsec.
    np.testing.assert_allclose(sums, np.tile(flux, (n, 1)), rtol=0.01)
    x = (stamps.images.sum(axis=2) * at).sum(axis=2) / sums
    y = (stamps.images.sum(axis=3) * at).sum(axis=2) / sums
    np.testing.assert_allclose(x, -3, atol=0.05)
    np.testing.assert_allclose(y, 2, atol=0.05)
    with pytest.raises(BadInput, match="--crop to at most|arcsec wide"):
        narrow = (
            {"bands": "u", "size": 8, "pixel_scale": 0.5},
            {"bands": "v", "size": 32, "pixel_scale": 0.25},
        )
        np.save(folder / "images.npy", np.ones((n, 64 + 1024)))
        keys = {"images": "images", "axes": "flat", "planes": list(narrow)}
        ingest(tmp_path / "narrow", folder, parse_map(keys, "m"))


def test_arrays_in_groups_are_named_by_their_path(tmp_path: Path) -> None:
    values = columns()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, value in values.items():
            file[f"survey/{name}"] = value
        file["alias"] = h5py.SoftLink("/survey")
    names = {key: f"survey/{name}" for key, name in LABELS.items()}
    stamps, _ = ingest(tmp_path / "out", tmp_path / "a.hdf5", map_of(images="survey/cutout", **names))
    np.testing.assert_array_equal(stamps.images, values["cutout"])
    with pytest.raises(BadInput, match="'alias' is a link to a group"):
        ingest(tmp_path / "alias", tmp_path / "a.hdf5", map_of(images="alias/cutout", **LABELS))
