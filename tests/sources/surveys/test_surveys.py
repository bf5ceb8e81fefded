"""Every survey's files in their documented layout: flux, place, noise, masks, overlaps, bad files."""

import gzip
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("astropy")

from astropy.io import fits

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import SURVEYS
from hpcphotoz.sources.surveys.ingest import ingest_images
from hpcphotoz.sources.surveys.survey import load_survey
from tests.helpers.datasets import load
from tests.helpers.sources.sdss_files import centroids, write_table
from tests.helpers.sources.survey_files import DEC, FWHM_PX, NOISE, RA, SHAPE, WRITTEN, Sky

COADDS = sorted(WRITTEN)
STARS = 6


def places(scale: float, count: int = STARS) -> list[tuple[float, float]]:
    """Stars 38 pixels apart or more, each at another fraction of a pixel."""
    step = scale / 3600
    return [
        (RA + (k % 3 - 1) * 45.37 * step / np.cos(np.radians(DEC)), DEC + (k // 3 - 0.5) * 53.21 * step)
        for k in range(count)
    ]


def sky_of(survey: str, **more: Any) -> Sky:
    written = WRITTEN[survey]
    flux = {band: 80.0 + 10 * k for k, band in enumerate(written.bands)}
    return Sky(written.scale, places(written.scale), flux, **more)


Tile = Callable[[str], tuple[Path, Sky]]


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> Tile:
    """One tile of a survey, without bad pixels: its folder, which tests do not change, and what it shows."""

    @cache
    def write(survey: str) -> tuple[Path, Sky]:
        folder, sky = tmp_path_factory.mktemp(survey), sky_of(survey)
        WRITTEN[survey].write(folder, sky)
        return folder, sky

    return write


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def table(folder: Path, stars: list[tuple[float, float]]) -> Path:
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": ra, "dec": dec} for k, (ra, dec) in enumerate(stars)
    ]
    return write_table(folder / "t.csv", rows)


def test_every_survey_of_the_help_can_be_loaded() -> None:
    for name in SURVEYS:
        survey = load_survey(name)
        assert survey.name == name and set(survey.usual_bands) <= set(survey.bands)
        assert survey.reference in survey.usual_bands and len(survey.planes) <= 8
    assert set(WRITTEN) | {"sdss"} == set(SURVEYS)


@pytest.mark.parametrize("survey", COADDS)
def test_injected_stars_keep_flux_and_place(tmp_path: Path, tile: Tile, survey: str) -> None:
    written, (folder, sky) = WRITTEN[survey], tile(survey)
    manifest = ingest_images(
        tmp_path / "o", survey, folder, table(tmp_path, sky.stars), stamp=32, processes=1
    )
    stamps = load(tmp_path / "o", manifest)
    assert manifest.header.bands == written.bands and manifest.header.pixel_scale == written.scale
    assert len(stamps) == STARS
    y, x = np.mgrid[:32, :32] - 15.5
    flux = stamps.images[:, :, np.hypot(x, y) < 12].sum(axis=2, dtype=np.float64)
    # The aperture's noise is 0.02 nMgy, 0.03 % of the faintest star.
    np.testing.assert_allclose(flux, np.tile(list(sky.flux.values()), (STARS, 1)), rtol=5e-3)
    assert np.abs(centroids(stamps.images, 8.0)).max() < 0.05
    np.testing.assert_allclose(stamps.sky_sigma, NOISE, rtol=1e-3)  # of the map, not measured
    assert manifest.provenance["skipped"] == [] and manifest.provenance["survey"] == survey


@pytest.mark.parametrize("survey", COADDS)
def test_fatal_planes_skip_a_stamp_with_their_name(tmp_path: Path, survey: str) -> None:
    written = WRITTEN[survey]
    sky = sky_of(survey)
    x, y = np.rint(sky.wcs().all_world2pix(*sky.stars[0], 0)).astype(int)
    sky.bad = [(int(y) + 5, int(x) + k) for k in range(-5, 5)]
    (tmp_path / "f").mkdir()
    written.write(tmp_path / "f", sky)
    options: dict[str, Any] = {"stamp": 32, "processes": 1}
    manifest = ingest_images(
        tmp_path / "o", survey, tmp_path / "f", table(tmp_path, sky.stars), masked_fraction=0.0, **options
    )
    assert load(tmp_path / "o", manifest).object_id.tolist() == [1, 2, 3, 4, 5]
    (skipped,) = manifest.provenance["skipped"]
    assert skipped["object_id"] == 0 and "run" not in skipped
    assert f"0.98 % of the stamp masked ({written.plane}) in the" in skipped["reason"]
    manifest = ingest_images(
        tmp_path / "all", survey, tmp_path / "f", table(tmp_path, sky.stars), masked_fraction=0.01, **options
    )
    assert manifest.rows == STARS


def test_each_bit_of_a_brick_s_maskbits_is_of_its_band(tmp_path: Path) -> None:
    # Bit k is set in row k alone. 2, 3, 4, 14: saturated in g, r, z, i; 5, 6, 7, 15: bad in all exposures.
    sky = Sky(0.262, [], dict.fromkeys("griz", 0.0))
    WRITTEN["legacy"].write(tmp_path, sky)
    path = next(tmp_path.glob("*maskbits*"))
    bits = np.zeros(SHAPE, np.int32)
    bits[:16] = 1 << np.arange(16)[:, None]
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(bits)]).writeto(path, overwrite=True)
    legacy = load_survey("legacy")
    (one,) = legacy.find(tmp_path, "griz")
    for files, saturated, bad in zip(one.files, (2, 3, 14, 4), (5, 6, 15, 7), strict=True):
        flags = legacy.read(files, None).flags
        assert flags is not None and np.flatnonzero(flags[:, 0]).tolist() == sorted({saturated, bad})
        assert flags[saturated, 0] == 1 and flags[bad, 0] == 2


def test_planes_of_a_coadd_are_those_that_its_own_header_names(tmp_path: Path, tile: Tile) -> None:
    rubin = load_survey("rubin")
    path = next(tile("rubin")[0].glob("*_g_*"))
    for turn in (0, 3):
        with fits.open(path) as hdus:
            mask, names = np.zeros(SHAPE, np.int32), ("SAT", "BAD", "NO_DATA", "INTRP", "CR", "DETECTED")
            for k, name in enumerate(names):
                hdus["MASK"].header[f"HIERARCH MP_{name}"] = k + turn
                mask[k] = 1 << k + turn
            hdus["MASK"].data = mask
            hdus["VARIANCE"].data[7] = np.nan
            hdus["IMAGE"].data[8] = np.nan
            hdus.writeto(tmp_path / path.name, overwrite=True)
        flags = rubin.read(rubin.find(tmp_path, ["g"])[0].files[0], None).flags
        assert flags is not None and flags[:10, 5].tolist() == [1, 2, 4, 0, 0, 0, 0, 4, 4, 0]


@pytest.mark.parametrize("survey", COADDS)
def test_of_overlapping_tiles_the_one_with_more_room_gives_the_stamp(
    tmp_path: Path, tile: Tile, survey: str
) -> None:
    written, (folder, sky) = WRITTEN[survey], tile(survey)
    copy_of(folder, tmp_path / "f")
    # A second tile 60 pixels farther west, whose stars are twice as bright: it has the westernmost two.
    double = {band: 2 * flux for band, flux in sky.flux.items()}
    written.write(tmp_path / "f", Sky(sky.scale, sky.stars, double, shift=(60.0, 0.0)), written.other)
    stars = table(tmp_path, sky.stars)
    manifest = ingest_images(tmp_path / "o", survey, tmp_path / "f", stars, stamp=32, processes=1)
    stamps = load(tmp_path / "o", manifest)
    assert len(stamps) == STARS and len(manifest.provenance["frame_sets"]) == 2
    flux = stamps.images[:, 0].sum(axis=(1, 2))[np.argsort(stamps.object_id)]
    np.testing.assert_allclose(flux, np.array([2, 1, 1, 2, 1, 1]) * sky.flux[written.bands[0]], rtol=0.02)


@pytest.mark.parametrize("survey", COADDS)
def test_bands_are_a_choice_and_a_set_without_one_is_left_out(
    tmp_path: Path, tile: Tile, survey: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written, (folder, sky) = WRITTEN[survey], tile(survey)
    copy_of(folder, tmp_path / "f")
    less = {band: sky.flux[band] for band in written.bands[1:]}
    written.write(tmp_path / "f", Sky(sky.scale, sky.stars, less, shift=(3.0, 0.0)), written.other)
    words = ["ingest", "images", str(tmp_path / "o"), "--survey", survey, "--images", str(tmp_path / "f")]
    words += ["--objects", str(table(tmp_path, sky.stars)), "--stamp", "24", "--processes", "1"]
    assert main(words) == 0
    assert f"lacks its {written.bands[0]} frame" in capsys.readouterr().err
    two = written.bands[:0:-1][:2]
    assert main([*words[:2], str(tmp_path / "two"), *words[3:], "--bands", ",".join(two)]) == 0
    assert read_manifest(tmp_path / "two").header.bands == two
    if survey == "euclid":
        assert main([*words[:2], str(tmp_path / "one"), *words[3:], "--bands", "VIS"]) == 0
    assert main([*words[:2], str(tmp_path / "no"), *words[3:], "--bands", "qq"]) == 2
    assert "must be some of" in capsys.readouterr().err


@pytest.mark.parametrize("survey", COADDS)
def test_a_truncated_file_is_named(tmp_path: Path, tile: Tile, survey: str) -> None:
    folder, sky = tile(survey)
    copy_of(folder, tmp_path / "f")
    for path in sorted((tmp_path / "f").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BadInput) as caught:
            ingest_images(
                tmp_path / "o", survey, tmp_path / "f", table(tmp_path, sky.stars), stamp=32, processes=1
            )
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
        assert not (tmp_path / "o" / MANIFEST).exists()
        path.write_bytes(whole)


@pytest.mark.parametrize("survey", COADDS)
def test_a_folder_without_files_and_two_files_of_one_frame(tmp_path: Path, tile: Tile, survey: str) -> None:
    folder, sky = tile(survey)
    (tmp_path / "f").mkdir()
    stars = table(tmp_path, sky.stars)
    with pytest.raises(BadInput, match="below$"):
        ingest_images(tmp_path / "o", survey, tmp_path / "f", stars)
    copy_of(folder, tmp_path / "f" / "one")
    copy_of(folder, tmp_path / "f" / "again")
    with pytest.raises(BadInput, match="the same frame as"):
        ingest_images(tmp_path / "o", survey, tmp_path / "f", stars)
    with pytest.raises(BadInput, match="epochs 'all'.*coadds"):
        ingest_images(tmp_path / "o", survey, tmp_path / "f", stars, epochs="all")


def test_maps_that_are_not_there_are_told(
    tmp_path: Path, tile: Tile, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, sky = tile("legacy")
    copy_of(folder, tmp_path / "f")
    for path in [*(tmp_path / "f").glob("*invvar*"), *(tmp_path / "f").glob("*maskbits*")]:
        path.unlink()
    stars = table(tmp_path, sky.stars)
    manifest = ingest_images(tmp_path / "o", "legacy", tmp_path / "f", stars, stamp=32, processes=1)
    said = capsys.readouterr().err
    assert "1 of 1 frame sets have no maskbits file in some band: there, saturated stars" in said
    assert "1 of 1 frame sets have no invvar map in some band: there, the sky sigma is measured" in said
    # Measured: 9216 pixels of the box, fewer at the edge, 1 % of noise, and the stars' wings.
    np.testing.assert_allclose(load(tmp_path / "o", manifest).sky_sigma, NOISE, rtol=0.05)


def test_the_psf_width_of_a_brick_is_that_of_its_map(tile: Tile) -> None:
    legacy = load_survey("legacy")
    (one,) = legacy.find(tile("legacy")[0], legacy.usual_bands)
    frame = legacy.read(one.files[0], None)
    assert frame.psf_fwhm_at(30.0, 40.0) == pytest.approx(FWHM_PX * 0.262)


@pytest.mark.parametrize("survey", COADDS)
def test_part_of_a_frame_is_that_part_of_the_whole(tmp_path: Path, survey: str) -> None:
    written, sky = WRITTEN[survey], sky_of(survey, bad=[(60, 70)])
    written.write(tmp_path, sky)
    described = load_survey(survey)
    files = described.find(tmp_path, described.usual_bands)[0].files[0]
    whole, part = described.read(files, None), described.read(files, (slice(50, 120), slice(40, 170)))
    np.testing.assert_array_equal(part.image, whole.image[50:120, 40:170])
    assert whole.flags is not None and part.flags is not None
    assert whole.variance is not None and part.variance is not None
    np.testing.assert_array_equal(part.flags, whole.flags[50:120, 40:170])
    assert np.argwhere(whole.flags).tolist() == [[60, 70]]
    np.testing.assert_array_equal(part.variance, whole.variance[50:120, 40:170])
    ra, dec = np.array([RA]), np.array([DEC])
    np.testing.assert_allclose(
        part.geometry.pixels(ra, dec) + [40, 50], whole.geometry.pixels(ra, dec), atol=1e-6
    )


def test_large_frames_give_the_same_stamps_read_in_strips(
    tmp_path: Path, tile: Tile, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sky = tile("des")
    stars = table(tmp_path, sky.stars)
    options: dict[str, Any] = {"stamp": 24, "shard_rows": 4, "processes": 1}
    whole = load(tmp_path / "a", ingest_images(tmp_path / "a", "des", folder, stars, **options))
    monkeypatch.setattr("hpcphotoz.sources.cutouts._WHOLE", 60 * SHAPE[1])
    monkeypatch.setattr("hpcphotoz.sources.cutouts.SKY_BOX_HALF_WIDTH", 8)
    part = load(tmp_path / "b", ingest_images(tmp_path / "b", "des", folder, stars, **options))
    assert whole.object_id.tolist() == part.object_id.tolist()
    np.testing.assert_allclose(part.images, whole.images, atol=1e-5)
    np.testing.assert_allclose(part.sky_sigma, whole.sky_sigma)


def damage_legacy(folder: Path) -> str:
    path = next(folder.glob("*invvar-r*"))
    fits.PrimaryHDU(np.ones((50, 60), "f4")).writeto(path, overwrite=True)
    return "HDU 0 is of 60 x 50 pixels: its image is of 200 x 180 pixels"


def damage_hsc(folder: Path) -> str:
    path = next(folder.glob("*HSC-I*"))
    with fits.open(path) as hdus:
        del hdus[0].header["FLUXMAG0"]
        hdus.writeto(path, overwrite=True)
    return f"{path.name}: no zero point: neither PHOTOCALIB_ID"


def damage_rubin(folder: Path) -> str:
    path = next(folder.glob("*_r_*"))
    with fits.open(path) as hdus:
        del hdus["MASK"].header["MP_SAT"]
        hdus.writeto(path, overwrite=True)
    return f"{path.name}: its mask has no plane MP_SAT"


def damage_des(folder: Path) -> str:
    path = next(folder.glob("*_r.fits.fz"))
    with fits.open(path) as hdus:
        fits.HDUList([hdus[0], hdus["SCI"], hdus["MSK"]]).writeto(path, overwrite=True)
    return f"{path.name}: has no HDU WGT: it has PRIMARY, SCI, MSK"


def damage_euclid(folder: Path) -> str:
    path = next(folder.glob("*BGSUB*VIS*"))
    with fits.open(path) as hdus:
        del hdus[0].header["MAGZERO"]
        hdus.writeto(path, overwrite=True)
    return f"{path.name}: its header lacks MAGZERO"


DAMAGES = {
    "legacy": damage_legacy,
    "hsc": damage_hsc,
    "rubin": damage_rubin,
    "des": damage_des,
    "euclid": damage_euclid,
}


@pytest.mark.parametrize("survey", COADDS)
def test_a_file_of_another_layout_is_named(tmp_path: Path, tile: Tile, survey: str) -> None:
    folder, sky = tile(survey)
    copy_of(folder, tmp_path / "f")
    expected = DAMAGES[survey](tmp_path / "f")
    with pytest.raises(BadInput) as caught:
        ingest_images(
            tmp_path / "o", survey, tmp_path / "f", table(tmp_path, sky.stars), stamp=32, processes=1
        )
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_calibration_that_varies_over_an_image_is_refused(tmp_path: Path, tile: Tile) -> None:
    path = next(tile("rubin")[0].glob("*_g_*"))
    with fits.open(path) as hdus:
        hdus["PhotoCalib"].data["flags"][2] = False
        hdus.writeto(tmp_path / path.name)
    rubin = load_survey("rubin")
    (one,) = rubin.find(tmp_path, ["g"])
    with pytest.raises(BadInput, match="varies over the image"):
        rubin.read(one.files[0], None)


def test_a_coadd_without_its_own_calibration_in_the_archive_is_named(tmp_path: Path, tile: Tile) -> None:
    path = next(tile("rubin")[0].glob("*_g_*"))
    with fits.open(path) as hdus:
        hdus[0].header["PHOTOCALIB_ID"] = 9
        hdus.writeto(tmp_path / path.name)
    rubin = load_survey("rubin")
    (one,) = rubin.find(tmp_path, ["g"])
    with pytest.raises(BadInput, match="its archive has no PhotoCalib of id 9"):
        rubin.read(one.files[0], None)


def test_a_packed_mosaic_is_read(tmp_path: Path, tile: Tile) -> None:
    path = next(tile("euclid")[0].glob("*BGSUB*VIS*"))
    euclid = load_survey("euclid")
    plain = euclid.read(euclid.find(path.parent, ["VIS"])[0].files[0], None)
    (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    (one,) = euclid.find(tmp_path, ["VIS"])
    np.testing.assert_array_equal(euclid.read(one.files[0], None).image, plain.image)
    assert euclid.read_geometry(one.files[0]).shape == SHAPE
