"""Stamps cut out of SDSS frames: flux and place kept in every band, bad input named, real frames read."""

import csv
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("astropy")

from astropy.io import fits  # noqa: E402
from astropy.wcs import WCS  # noqa: E402

from hpcphotoz.data.shards import MANIFEST, Manifest, Stamps, read_rows  # noqa: E402
from hpcphotoz.errors import BadInput  # noqa: E402
from hpcphotoz.sources.fpc import read_frame  # noqa: E402
from hpcphotoz.sources.frame import resample, sky_sigma  # noqa: E402
from hpcphotoz.sources.frames import BANDS, ingest_frames  # noqa: E402
from hpcphotoz.sources.objects import RUNS  # noqa: E402

DATA = Path(os.environ.get("HPCPHOTOZ_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
STRIPE82 = DATA / "sdss-stripe82"
RA, DEC = 351.65, 0.10
SCALE = 0.396 / 3600  # deg
FLUX20 = {"u": 950.0, "g": 2700.0, "r": 1980.0, "i": 1590.0, "z": 264.0}
FLUX = {"u": 800.0, "g": 900.0, "r": 1000.0, "i": 1100.0, "z": 1200.0}  # nMgy of the injected source
# How each band's frame lies: pixels of offset, degrees of rotation, scale.
LIE = {
    "u": (3.3, -2.6, 0.4, 1.0),
    "g": (-1.7, 0.45, -0.3, 1.01),
    "r": (0.0, 0.0, 0.0, 1.0),
    "i": (0.5, 0.5, 2.0, 0.99),
    "z": (-4.25, 6.1, -1.0, 1.001),
}
SHAPE = (220, 240)  # y, x
SKY_DN = 120.0
NOISE_DN = 4.0


def header(band: str) -> fits.Header:
    dx, dy, turn, scale = LIE[band]
    # The camera's orientation: x runs to the north, y to the east.
    angle = np.radians(90 + turn)
    cd = SCALE * scale * np.array([[np.cos(angle), np.sin(angle)], [np.sin(angle), -np.cos(angle)]])
    values = {
        "SOFTBIAS": 1000,
        "SKY": SKY_DN,
        "FLUX20": FLUX20[band],
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRPIX1": SHAPE[1] / 2 + dx,
        "CRPIX2": SHAPE[0] / 2 + dy,
        "CRVAL1": RA,
        "CRVAL2": DEC,
        "CD1_1": cd[0, 0],
        "CD1_2": cd[0, 1],
        "CD2_1": cd[1, 0],
        "CD2_2": cd[1, 1],
        "RADECSYS": "ICRS",
        "EQUINOX": 2000.0,
    }
    return fits.Header(values)


def write_set(folder: Path, sources: list[tuple[float, float]], run: int = 94, field: int = 12) -> None:
    """Five frames of Gaussian sources (FWHM 1.3") at these positions, as SDSS writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(run)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for band in BANDS:
        head = header(band)
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = [head["CTYPE1"], head["CTYPE2"]]
        wcs.wcs.crpix, wcs.wcs.crval = [head["CRPIX1"], head["CRPIX2"]], [RA, DEC]
        wcs.wcs.cd = [[head["CD1_1"], head["CD1_2"]], [head["CD2_1"], head["CD2_2"]]]
        counts = SKY_DN + 1000 + NOISE_DN * rng.standard_normal(SHAPE)
        for ra, dec in sources:
            px, py = wcs.wcs_world2pix(ra, dec, 0)
            sigma = 1.3 / 0.396 / 2.355 / LIE[band][3]
            profile = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
            counts += FLUX[band] * FLUX20[band] / 10 * profile
        path = folder / f"fpC-{run:06d}-{band}4-{field:04d}.fit"
        fits.PrimaryHDU(np.rint(counts).clip(0, 65535).astype(np.uint16), head).writeto(path)


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def load(folder: Path, manifest: Manifest) -> Stamps:
    return Stamps.concatenate(list(read_rows(folder, manifest)))


def centroids(images: npt.NDArray[Any], radius: float) -> npt.NDArray[Any]:
    """(..., 2): mean x, y from the stamp's centre within a radius, pixels."""
    size = images.shape[-1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    light = np.where(x**2 + y**2 < radius**2, images, 0.0)
    total = light.sum(axis=(-2, -1))
    return np.stack([(light * axis).sum(axis=(-2, -1)) / total for axis in (x, y)], axis=-1)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    write_set(tmp_path / "frames" / "run-000094", [(RA, DEC), (RA + 0.0031, DEC - 0.0022)])
    return tmp_path / "frames"


def test_flux_and_place_are_kept_in_every_band(tmp_path: Path, frames: Path) -> None:
    table = write_table(
        tmp_path / "objects.csv",
        [
            {"object_id": 7, "ra_deg": RA, "dec_deg": DEC, "z": 0.12, "ebv": 0.03},
            {"object_id": 8, "ra_deg": RA + 0.0031, "dec_deg": DEC - 0.0022, "z": "", "ebv": ""},
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
    expected = np.array([NOISE_DN * 10 / FLUX20[band] for band in BANDS])
    np.testing.assert_allclose(stamps.sky_sigma, np.tile(expected, (2, 1)), rtol=0.03)
    assert manifest.provenance["skipped"] == []


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


def test_lanczos_is_exact_at_pixels_and_on_a_constant(tmp_path: Path, frames: Path) -> None:
    frame = read_frame(next(frames.rglob("*-r4-*")))
    y, x = np.mgrid[20:40, 30:50].astype(float)
    np.testing.assert_allclose(resample(frame, x, y), frame.image[20:40, 30:50], atol=1e-6)
    frame.image[:] = 3.5
    np.testing.assert_allclose(resample(frame, x + 0.37, y - 0.81), 3.5, rtol=1e-6)


def test_sky_sigma_ignores_sources(tmp_path: Path, frames: Path) -> None:
    frame = read_frame(next(frames.rglob("*-g4-*")))
    before = sky_sigma(frame, 110, 110)
    frame.image[100:120, 100:120] += 50.0
    assert sky_sigma(frame, 110, 110) == pytest.approx(before, rel=0.01)


def test_skipped_objects_are_listed_with_the_reason(
    tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [(RA, DEC), (RA, DEC + 100 * SCALE), (RA - 180, -DEC)]  # the last is where a tangent plane folds
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": ra, "dec": dec} for k, (ra, dec) in enumerate(places, 1)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "out", frames, table)
    reasons = {one["object_id"]: one["reason"] for one in manifest.provenance["skipped"]}
    assert manifest.rows == 1 and set(reasons) == {2, 3}
    assert "edge of the r frame of run 94 camcol 4 field 12" in reasons[2]
    assert reasons[3] == "outside every frame"
    assert "skipped 2: 1 outside every frame, 1 too near an edge" in capsys.readouterr().err


def test_one_stamp_a_run_and_one_only_of_overlapping_fields(tmp_path: Path, frames: Path) -> None:
    write_set(frames / "run-000094", [(RA, DEC)], field=13)
    write_set(frames / "run-000752", [(RA, DEC)], run=752)
    table = write_table(tmp_path / "t.csv", [{"object_id": 5, "ra": RA, "dec": DEC}])
    manifest = ingest_frames(tmp_path / "all", frames, table, stamp=32, epochs="all")
    assert load(tmp_path / "all", manifest).object_id.tolist() == [5 * RUNS + 94, 5 * RUNS + 752]
    manifest = ingest_frames(tmp_path / "one", frames, table, stamp=32)
    assert load(tmp_path / "one", manifest).object_id.tolist() == [5]


def damage_truncate(folder: Path) -> str:
    path = next(folder.rglob("*-i4-*"))
    path.write_bytes(path.read_bytes()[:-20_000])
    return path.name


def damage_truncate_gzip(folder: Path) -> str:
    path = next(folder.rglob("*-i4-*"))
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), compresslevel=1)[:-5000])
    path.unlink()
    return packed.name


def damage_not_fits(folder: Path) -> str:
    path = next(folder.rglob("*-u4-*"))
    path.write_text("<html>404 not found</html>")
    return path.name


def damage_empty(folder: Path) -> str:
    path = next(folder.rglob("*-u4-*"))
    path.write_bytes(b"")
    return path.name


def damage_remove_band(folder: Path) -> str:
    next(folder.rglob("*-z4-*")).unlink()
    return "field 12 lacks its z frame"


def damage_remove_key(folder: Path) -> str:
    path = next(folder.rglob("*-g4-*"))
    counts = fits.getdata(path)
    head = header("g")
    del head["FLUX20"]
    fits.PrimaryHDU(counts, head).writeto(path, overwrite=True)
    return f"{path.name}: its header lacks FLUX20"


def damage_blank(folder: Path) -> str:
    path = next(folder.rglob("*-g4-*"))
    fits.PrimaryHDU(np.full(SHAPE, 1120, np.uint16), header("g")).writeto(path, overwrite=True)
    return f"{path.name}: no noise"


def damage_twice(folder: Path) -> str:
    path = next(folder.rglob("*-g4-*"))
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
    return "the same frame as"


def damage_all(folder: Path) -> str:
    for path in folder.rglob("fpC-*"):
        path.unlink()
    return "no fpC-"


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_truncate_gzip,
        damage_not_fits,
        damage_empty,
        damage_remove_band,
        damage_remove_key,
        damage_blank,
        damage_twice,
        damage_all,
    ],
)
def test_bad_frames_are_named(tmp_path: Path, frames: Path, damage: Callable[[Path], str]) -> None:
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])
    expected = damage(frames)
    with pytest.raises(BadInput) as caught:
        ingest_frames(tmp_path / "out", frames, table)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_nothing_in_the_frames_is_an_error(tmp_path: Path, frames: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": 10.0, "dec": 10.0}])
    with pytest.raises(BadInput, match="none of its 1 objects"):
        ingest_frames(tmp_path / "out", frames, table)
    with pytest.raises(BadInput, match="no such folder"):
        ingest_frames(tmp_path / "out", tmp_path / "elsewhere", table)
    with pytest.raises(BadInput, match="objects.csv: not a readable"):
        ingest_frames(tmp_path / "out", frames, tmp_path / "objects.csv")
    wrong: list[dict[str, Any]] = [{"stamp": 2}, {"bands": "rr"}, {"bands": "ux"}, {"epochs": "two"}]
    for options in [*wrong, {"masked_fraction": 1.5}, {"shard_rows": 0}]:
        with pytest.raises(BadInput, match=next(iter(options)).replace("_", " ")):
            ingest_frames(tmp_path / "out", frames, table, **options)


@pytest.mark.skipif(
    not STRIPE82.is_dir(), reason=f"no SDSS frames at {STRIPE82} (HPCPHOTOZ_DATA names their parent)"
)
def test_real_frames_of_two_runs(tmp_path: Path) -> None:
    # Isolated, unsaturated galaxies that were detected in both runs, and one that the first run cuts off.
    with open(STRIPE82 / "objects.csv", newline="") as file:
        wanted = ("2", "13", "16", "33", "37", "51", "53", "58", "70")
        rows: list[dict[str, object]] = [
            dict(row) for row in csv.DictReader(file) if row["object_id"] in wanted
        ]
    table = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "out", STRIPE82, table, epochs="all")
    stamps = load(tmp_path / "out", manifest)
    runs = stamps.object_id % RUNS
    assert (runs == 4192).sum() == 8 and (runs == 6377).sum() == 9
    assert [one["object_id"] for one in manifest.provenance["skipped"]] == [70]
    # The frames' SKY, gain and dark variance give 0.055 0.019 0.028 0.043 0.21 for run 4192.
    sky = np.median(stamps.sky_sigma[runs == 4192], axis=0)
    np.testing.assert_allclose(sky, [0.055, 0.0188, 0.0285, 0.0431, 0.206], rtol=0.13)
    np.testing.assert_allclose(sky, [0.048, 0.018, 0.027, 0.041, 0.199], rtol=0.2)
    offset = centroids(stamps.images[:, 1:4], 6.0)  # g, r, i; u and z are too noisy for single objects
    assert np.median(np.abs(offset)) < 0.1 and np.abs(offset).max() < 0.6
    # The same galaxies three years apart: calibration and resampling agree to a few per cent.
    y, x = np.mgrid[:64, :64] - 31.5
    flux = stamps.images[:, 1:4, x**2 + y**2 < 64].sum(axis=2)
    both = {key // RUNS: k for k, key in enumerate(stamps.object_id) if key % RUNS == 4192}
    ratio = [
        flux[k] / flux[both[key // RUNS]] for k, key in enumerate(stamps.object_id) if key // RUNS in both
    ]
    np.testing.assert_allclose(np.median(ratio, axis=0), 1.0, atol=0.05)
