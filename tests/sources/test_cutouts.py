"""Stamps cut out of SDSS frames keep flux and place in every band, and masked ones are skipped."""

import csv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("astropy")

from astropy.io import fits

from hpcphotoz.sources.catalogue import RUN_FACTOR
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.cutouts import project, stamp_grid
from hpcphotoz.sources.noise import frame_sky_sigma
from hpcphotoz.sources.surveys.fits import read_header
from hpcphotoz.sources.surveys.frame import read_geometry, resample
from tests.helpers.datasets import load
from tests.helpers.sources.sdss_files import (
    DEC,
    FLUX,
    FLUX20,
    LIE,
    NOISE_DN,
    RA,
    SCALE,
    SHAPE,
    STRIPE82,
    centroids,
    ingest_frames,
    read_frame,
    real_frames,
    write_dr8,
    write_mask,
    write_set,
    write_table,
)


def test_flux_and_place_are_kept_in_every_band(tmp_path: Path, frames: Path) -> None:
    table = write_table(
        tmp_path / "objects.csv",
        [
            {"object_id": 7, "ra_deg": RA, "dec_deg": DEC, "z": 0.12, "ebv": 0.03},
            {"object_id": 8, "ra_deg": RA + 0.0031, "dec_deg": DEC - 0.0022, "z": "", "ebv": 0},
        ],
    )
    out = tmp_path / "out"
    manifest = ingest_frames(out, frames, table, stamp=40)
    stamps = load(out, manifest)
    assert stamps.images.shape == (2, 5, 40, 40)
    assert stamps.object_id.tolist() == [7, 8]
    np.testing.assert_allclose(stamps.z_spec, [0.12, np.nan])
    np.testing.assert_allclose(stamps.ebv, [0.03, 0.0])
    y, x = np.mgrid[:40, :40] - 19.5
    inside = x**2 + y**2 < 10**2
    flux = stamps.images[:, :, inside].sum(axis=2, dtype=np.float64)
    # The aperture's noise is 0.1 % of the flux (z: 0.2 %).
    np.testing.assert_allclose(flux, np.tile([FLUX[b] for b in BANDS], (2, 1)), rtol=5e-3)
    assert np.abs(centroids(stamps.images, 8.0)).max() < 0.1
    # Counts are whole DN and the noise is 4 DN: the clip at 3 sigma keeps all or no pixels of +-12 DN, which
    # makes 2 %. Frames of other pixel scales are brought to that of r.
    expected = np.array([NOISE_DN * 10 / FLUX20[band] / LIE[band][3] ** 2 for band in BANDS])
    np.testing.assert_allclose(stamps.sky_sigma, np.tile(expected, (2, 1)), rtol=0.03)
    assert manifest.provenance["skipped"] == []


def test_flux_and_place_at_any_fraction_of_a_pixel(tmp_path: Path) -> None:
    # 12 sources 44 pixels apart, each at another fraction of a pixel in each band; u to z are turned by up
    # to 2 degrees and scaled by 1 %.
    places = [
        (RA + (44.23 * i - 66) * SCALE, DEC + (44.37 * j - 44) * SCALE) for i in range(4) for j in range(3)
    ]
    write_set(tmp_path / "frames", places)
    table = write_table(
        tmp_path / "t.csv", [{"object_id": k, "ra": ra, "dec": dec} for k, (ra, dec) in enumerate(places)]
    )
    stamps = load(tmp_path / "o", ingest_frames(tmp_path / "o", tmp_path / "frames", table, stamp=24))
    assert len(stamps) == 12
    y, x = np.mgrid[:24, :24] - 11.5
    flux = stamps.images[:, :, x**2 + y**2 < 10**2].sum(axis=2, dtype=np.float64)
    error = flux / np.array([FLUX[band] for band in BANDS]) - 1
    # One stamp's noise is 0.1 % (z: 0.25 %); the mean of twelve has a third of it.
    assert np.abs(error[:, :4]).max() < 5e-3 and np.abs(error[:, 4]).max() < 1e-2
    assert np.abs(error.mean(axis=0)).max() < 2e-3
    assert np.abs(centroids(stamps.images, 8.0)).max() < 0.05


def test_a_frame_is_resampled_onto_another_by_its_wcs(tmp_path: Path) -> None:
    # Tangent points a degree apart, and a band that is turned by 2 degrees.
    write_set(tmp_path, [(RA, DEC)])
    write_set(tmp_path, [(RA, DEC)], field=13, offset=1.0)
    source = read_frame(tmp_path / "fpC-000094-r4-0012.fit").geometry
    for name in ("fpC-000094-i4-0012.fit", "fpC-000094-u4-0013.fit"):
        target = read_frame(tmp_path / name).geometry
        for half, limit in ((32, 1e-3), (512, 0.05)):
            ra, dec = np.array([RA + 0.002]), np.array([DEC - 0.001])
            (centre,), (turn,) = project(source, target, ra, dec, half)
            x, y = stamp_grid(centre, turn, 2 * half)
            (middle,) = source.pixels(ra, dec)
            along_y, along_x = np.mgrid[: 2 * half, : 2 * half] - (2 * half - 1) / 2
            sky = source.sky(np.stack([(middle[0] + along_x).ravel(), (middle[1] + along_y).ravel()], axis=1))
            exact = target.pixels(*sky.T)
            np.testing.assert_allclose(np.stack([x.ravel(), y.ravel()], axis=1), exact, atol=limit)


def test_orientation_is_that_of_the_r_frame(tmp_path: Path) -> None:
    # A second source 8 pixels to the north shows up at +x, one to the east at +y, in every band.
    north, east = (RA, DEC + 8 * SCALE), (RA + 8 * SCALE, DEC)
    for k, (source, axis) in enumerate([(north, 0), (east, 1)]):
        write_set(tmp_path / str(k), [source])
        table = write_table(tmp_path / f"{k}.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])
        stamps = load(tmp_path / f"o{k}", ingest_frames(tmp_path / f"o{k}", tmp_path / str(k), table))
        peak = np.array([np.unravel_index(np.argmax(image), image.shape) for image in stamps.images[0]])
        offset = peak[:, ::-1] - 31.5
        np.testing.assert_allclose(offset[:, axis], 8, atol=1.0)
        np.testing.assert_allclose(offset[:, 1 - axis], 0, atol=1.0)


@pytest.mark.parametrize("suffix", ["fits", "fits.gz", "fits.bz2"])
def test_frames_of_dr8_give_the_stamps_of_dr7(tmp_path: Path, frames: Path, suffix: str) -> None:
    places = [(RA, DEC), (RA + 0.0031, DEC - 0.0022)]
    write_set(tmp_path / "dr8", places, dr8=suffix)
    table = write_table(tmp_path / "t.csv", [{"object_id": 3, "ra": RA, "dec": DEC}])
    old = load(tmp_path / "o7", ingest_frames(tmp_path / "o7", frames, table, stamp=40))
    new = load(tmp_path / "o8", ingest_frames(tmp_path / "o8", tmp_path / "dr8", table, stamp=40))
    np.testing.assert_allclose(new.images, old.images, atol=1e-4)
    np.testing.assert_allclose(new.sky_sigma, old.sky_sigma, rtol=1e-4)


def test_lanczos_is_exact_at_pixels_and_on_a_constant(tmp_path: Path, frames: Path) -> None:
    frame = read_frame(next(frames.rglob("*-r4-*")))
    y, x = np.mgrid[20:40, 30:50].astype(float)
    np.testing.assert_allclose(resample(frame, x, y), frame.image[20:40, 30:50], atol=1e-6)
    # The definition: sinc(d) sinc(d/3) of the six nearest pixels of an axis, normalised.
    for fx, fy in ((0.37, 0.81), (1e-12, 0.5), (0.999, 1 - 1e-12)):
        at = [np.arange(-2, 4) - f for f in (fx, fy)]
        wx, wy = [(w := np.sinc(d) * np.sinc(d / 3)) / w.sum() for d in at]
        (value,) = resample(frame, np.array([110 + fx]), np.array([105 + fy]))
        assert value == pytest.approx(wy @ frame.image[103:109, 108:114] @ wx, rel=1e-6)
    frame.image[:] = 3.5
    np.testing.assert_allclose(resample(frame, x + 0.37, y - 0.81), 3.5, rtol=1e-6)


def test_sky_sigma_ignores_sources(tmp_path: Path, frames: Path) -> None:
    frame = read_frame(next(frames.rglob("*-g4-*")))
    before = frame_sky_sigma(frame.image, 110, 110)
    frame.image[100:120, 100:120] += 50.0
    assert frame_sky_sigma(frame.image, 110, 110) == pytest.approx(before, rel=0.01)


def mask_of(folder: Path, band: str, plane: str, count: int, place: tuple[float, float]) -> None:
    """Flag `count` pixels of a row through a place in a band of the set that `write_set` makes."""
    (path,) = [*folder.glob(f"fpC-*-{band}4-*"), *folder.glob(f"frame-{band}-*")]
    geometry = read_geometry(read_header(path), path, "a frame")
    ((x, y),) = geometry.pixels(*np.array(place)[:, None])
    span = (round(y) + 3, round(x), round(x) + count - 1)
    write_mask(folder / f"fpM-000094-{band}4-0012.fit", {plane: [[span]]})


@pytest.mark.parametrize("dr8", ["", "fits"])
def test_masked_stamps_are_skipped_with_band_and_plane(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dr8: str
) -> None:
    star, galaxy = (RA, DEC), (RA + 0.0050, DEC - 0.0022)
    write_set(tmp_path / "f", [star, galaxy], dr8=dr8)
    mask_of(tmp_path / "f", "i", "SATUR", 12, star)
    mask_of(tmp_path / "f", "g", "CR", 5, galaxy)
    mask_of(tmp_path / "f", "u", "INTERP", 12, galaxy)
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": ra, "dec": dec} for k, (ra, dec) in enumerate([star, galaxy], 1)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "out", tmp_path / "f", table, stamp=40)  # 0.005 is 8 pixels
    assert load(tmp_path / "out", manifest).object_id.tolist() == [2]
    (skipped,) = manifest.provenance["skipped"]
    assert skipped == {
        "object_id": 1,
        "run": 94,
        "reason": "0.75 % of the stamp masked (SATUR) in the i frame of run 94 camcol 4 field 12",
    }
    said = capsys.readouterr().err
    assert said.count("have no fpM mask planes in some band") == 1 and "skipped 1: 1 masked" in said
    manifest = ingest_frames(tmp_path / "strict", tmp_path / "f", table, stamp=40, masked_fraction=0.0075)
    assert manifest.rows == 2
    manifest = ingest_frames(tmp_path / "gr", tmp_path / "f", table, stamp=40, bands="gr", masked_fraction=0)
    assert [one["reason"][:42] for one in manifest.provenance["skipped"]] == [
        "0.31 % of the stamp masked (CR) in the g f"
    ]


def test_pixels_that_are_no_number_are_skipped(tmp_path: Path) -> None:
    near, far = (RA, DEC), (RA + 60 * SCALE, DEC)
    write_set(tmp_path / "f", [near, far], dr8="fits")
    path = tmp_path / "f" / "frame-g-000094-4-0012.fits"
    image, head = fits.getdata(path, header=True)
    image[SHAPE[0] // 2, SHAPE[1] // 2] = np.nan
    path.unlink()
    write_dr8(path, image, head)
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": ra, "dec": dec} for k, (ra, dec) in enumerate([near, far])
    ]
    manifest = ingest_frames(tmp_path / "o", tmp_path / "f", write_table(tmp_path / "t.csv", rows), stamp=32)
    assert load(tmp_path / "o", manifest).object_id.tolist() == [1]
    assert "not finite in the g frame" in manifest.provenance["skipped"][0]["reason"]


@real_frames
def test_real_frames_of_two_runs(tmp_path: Path) -> None:
    # Isolated, unsaturated galaxies that were detected in both runs, one that the first run cuts off, and 22,
    # a saturated star.
    with open(STRIPE82 / "objects.csv", newline="") as file:
        wanted = ("2", "13", "16", "22", "33", "37", "51", "53", "58", "70")
        rows: list[dict[str, object]] = [
            dict(row) for row in csv.DictReader(file) if row["object_id"] in wanted
        ]
    table = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "out", STRIPE82, table, epochs="all")
    stamps = load(tmp_path / "out", manifest)
    runs = stamps.object_id % RUN_FACTOR
    assert (runs == 4192).sum() == 8 and (runs == 6377).sum() == 9
    skipped = [(one["object_id"], one["run"], one["reason"]) for one in manifest.provenance["skipped"]]
    assert [one[:2] for one in skipped] == [(70, 4192), (22, 4192), (22, 6377)]
    assert "edge of the r frame" in skipped[0][2] and "(SATUR) in the" in skipped[1][2]
    # SKY, gain, dark variance and tsField of run 4192 give 0.052 0.018 0.028 0.043 0.20.
    sky = np.median(stamps.sky_sigma[runs == 4192], axis=0)
    np.testing.assert_allclose(sky[:4], [0.0524, 0.0182, 0.0284, 0.0428], rtol=0.05)
    # In z there is more noise than photons and dark current give, also in differences of adjacent pixels.
    np.testing.assert_allclose(sky[4], 0.2015, rtol=0.15)
    offset = centroids(stamps.images[:, 1:4], 6.0)  # g, r, i; u and z are too noisy for single objects
    assert np.median(np.abs(offset)) < 0.1 and np.abs(offset).max() < 0.6
    # The same galaxies three years apart: calibration and resampling agree to a few per cent.
    y, x = np.mgrid[:64, :64] - 31.5
    flux = stamps.images[:, 1:4, x**2 + y**2 < 64].sum(axis=2)
    both = {key // RUN_FACTOR: k for k, key in enumerate(stamps.object_id) if key % RUN_FACTOR == 4192}
    ratio = [
        flux[k] / flux[both[key // RUN_FACTOR]]
        for k, key in enumerate(stamps.object_id)
        if key // RUN_FACTOR in both
    ]
    np.testing.assert_allclose(np.median(ratio, axis=0), 1.0, atol=0.05)
