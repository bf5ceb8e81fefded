"""Projections with and without distortion: places, pixel areas, flux kept between them, bad headers."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("astropy")

from astropy.io import fits
from astropy.wcs import WCS

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.surveys.frame import Frame, Geometry, read_geometry, resample
from hpcphotoz.sources.surveys.ingest import ingest_images
from tests.helpers.datasets import load
from tests.helpers.sources.sdss_files import centroids, write_table
from tests.helpers.sources.survey_files import DEC, NOISE, RA, SHAPE, Sky, write_des

PROJECTIONS = ["TAN", "TAN-SIP", "TPV"]
SCALE = 0.263


def geometry(projection: str, turn: float = 0.0) -> Geometry:
    header = Sky(SCALE, [], {}, projection=projection, turn=turn).header()
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, SHAPE[1], SHAPE[0]
    return read_geometry(header, Path("a.fits"), "a frame")


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_places_are_those_of_astropy_and_come_back(projection: str) -> None:
    found = geometry(projection, turn=20.0)
    assert found.distorted == (projection != "TAN")
    xy = np.array([[0.0, 0.0], [199.0, 179.0], [13.25, 160.5], [100.0, 90.0]])
    sky = found.sky(xy)
    wcs = WCS(Sky(SCALE, [], {}, projection=projection, turn=20.0).header())
    np.testing.assert_allclose(sky, np.stack(wcs.all_pix2world(xy[:, 0], xy[:, 1], 0), axis=1), atol=1e-10)
    np.testing.assert_allclose(found.pixels(*sky.T), xy, atol=1e-3)
    if projection != "TAN":  # the distortion is large enough to be seen
        plain = geometry("TAN", turn=20.0).pixels(*sky.T)
        assert np.abs(plain - xy).max() > 0.5


def test_a_place_where_the_distortion_has_no_inverse_is_not_in_the_frame() -> None:
    far = geometry("TAN-SIP").pixels(np.array([RA, RA + 1.0]), np.array([DEC, DEC + 1.0]))
    assert np.isfinite(far[0]).all()
    x, y = far[1]
    assert not (0 <= x < SHAPE[1] and 0 <= y < SHAPE[0])


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_area_of_a_pixel_is_that_of_its_corners(projection: str) -> None:
    found = geometry(projection)
    for x, y in ((100.0, 90.0), (190.0, 20.0)):
        ends = found.sky(np.array([[x + 0.5, y], [x - 0.5, y], [x, y + 0.5], [x, y - 0.5]]))
        east, north = ends[0] - ends[1], ends[2] - ends[3]
        expected = abs(east[0] * north[1] - east[1] * north[0]) * np.cos(np.radians(DEC))
        assert found.local_pixel_area(x, y) == pytest.approx(expected, rel=1e-4)
    middle, edge = found.local_pixel_area(99.0, 89.0), found.local_pixel_area(195.0, 89.0)
    assert middle == pytest.approx(found.pixel_area, rel=1e-3)
    assert (abs(edge / middle - 1) > 0.01) == (projection != "TAN")


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_part_of_a_frame_lies_where_it_lay(projection: str) -> None:
    found = geometry(projection)
    part = found.cropped((slice(40, 150), slice(30, 190)))
    assert part.shape == (110, 160) and found.cropped(None) is found
    xy = np.array([[5.0, 7.0], [100.0, 60.0]])
    np.testing.assert_allclose(part.sky(xy), found.sky(xy + [30, 40]), atol=1e-9)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_flux_and_place_are_kept_from_a_distorted_frame_onto_a_straight_one(
    tmp_path: Path, projection: str
) -> None:
    # Three of the four bands are turned and distorted; the stamps have the grid of r, which is not.
    step = SCALE / 3600
    stars = [(RA + (k % 3 - 1) * 52.4 * step, DEC + (k // 3 - 0.5) * 61.3 * step) for k in range(6)]
    (tmp_path / "f").mkdir()
    for band, kind, turn in (
        ("r", "TAN", 0.0),
        ("g", projection, 30.0),
        ("i", projection, -8.0),
        ("z", "TAN", 100.0),
    ):
        write_des(tmp_path / "f", Sky(SCALE, stars, {band: 100.0}, projection=kind, turn=turn))
    rows: list[dict[str, object]] = [{"object_id": k, "ra": a, "dec": d} for k, (a, d) in enumerate(stars)]
    manifest = ingest_images(
        tmp_path / "o",
        "des",
        tmp_path / "f",
        write_table(tmp_path / "t.csv", rows),
        bands="griz",
        stamp=32,
        processes=1,
    )
    stamps = load(tmp_path / "o", manifest)
    y, x = np.mgrid[:32, :32] - 15.5
    flux = stamps.images[:, :, np.hypot(x, y) < 12].sum(axis=2, dtype=np.float64)
    np.testing.assert_allclose(flux, 100.0, rtol=5e-3)  # without the local area: 1.4 %
    assert np.abs(centroids(stamps.images, 8.0)).max() < 0.05


def test_a_frame_holds_places_whose_six_pixels_either_way_are_in_it() -> None:
    image = np.random.default_rng(0).normal(size=(13, 15)).astype(np.float32)
    frame = Frame(Path("a"), "r", image, geometry("TAN"))
    padded = Frame(Path("a"), "r", np.pad(image, 5, constant_values=np.nan), geometry("TAN"))
    for x in np.arange(0.0, 15.0, 0.25):
        for y in (1.75, 2.0, 6.5, 9.0, 9.25):
            place = np.array([[x]]), np.array([[y]])
            assert frame.holds(*place) == (2 <= x <= 11 and 2 <= y <= 9)
            if frame.holds(*place):
                value = resample(frame, *place)
                assert value == resample(padded, place[0] + 5, place[1] + 5) and np.isfinite(value)


def test_noise_comes_from_the_variance_where_there_is_one() -> None:
    image = np.random.default_rng(0).normal(0, 2.0, SHAPE).astype(np.float32)
    place = geometry("TAN")
    variance = np.full(SHAPE, 9.0, np.float32)
    variance[:, :90] = np.nan  # no data: not part of the median
    flags = np.zeros(SHAPE, np.uint8)
    flags[:, 150:], variance[:, 150:] = 1, 400.0
    assert Frame(Path("a"), "r", image, place).sky_sigma(100, 90) == pytest.approx(2.0, rel=0.03)
    assert Frame(Path("a"), "r", image, place, flags, variance).sky_sigma(100, 90) == pytest.approx(3.0)
    with pytest.raises(BadInput, match=r"a: no variance around ra = 150\.\d+, dec = 2\.\d+ deg"):
        Frame(Path("a"), "r", image, place, flags, 0 * variance).sky_sigma(100, 90)
    with pytest.raises(BadInput, match="a: no noise around"):
        Frame(Path("a"), "r", 0 * image, place).sky_sigma(100, 90)


def test_the_psf_width_is_one_figure_or_a_map() -> None:
    image, place = np.zeros(SHAPE, np.float32), geometry("TAN")
    widths = np.full(SHAPE, 1.25, np.float32)
    widths[:, :50] = 0.0
    assert np.isnan(Frame(Path("a"), "r", image, place).psf_fwhm_at(3, 4))
    assert Frame(Path("a"), "r", image, place, psf_fwhm=1.5).psf_fwhm_at(3, 4) == 1.5
    assert Frame(Path("a"), "r", image, place, psf_fwhm=widths).psf_fwhm_at(60.4, 4) == 1.25
    assert np.isnan(Frame(Path("a"), "r", image, place, psf_fwhm=widths).psf_fwhm_at(3, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NAXIS": 3}, "no two-dimensional image"),
        ({"NAXIS1": 4}, "no two-dimensional image"),
        ({"CTYPE1": "RA---SIN"}, "only TAN, TAN-SIP and TPV frames"),
        ({"CTYPE1": "GLON-TAN"}, "only TAN, TAN-SIP and TPV frames"),
        ({"CRVAL1": None}, "lacks CRVAL1"),
        ({"CRVAL1": "x"}, "CRVAL1 = 'x' is not a number"),
        ({"CD1_1": 0.0, "CD2_2": 0.0}, "no usable WCS"),
        ({"CD2_2": None}, "lacks CD2_2"),
        ({"A_ORDER": 2, "B_ORDER": 2}, "SIP coefficients, but CTYPE1 = 'RA---TAN'"),
    ],
)
def test_a_header_without_a_usable_place_is_named(change: dict[str, object], message: str) -> None:
    header = fits.Header(Sky(SCALE, [], {}).header())
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, SHAPE[1], SHAPE[0]
    for key, value in change.items():
        if value is None:
            del header[key]
        else:
            header[key] = value
    with pytest.raises(BadInput, match=message) as caught:
        read_geometry(header, Path("a.fits"), "a frame")
    assert str(caught.value).startswith("a.fits: ") and "\n" not in str(caught.value)


def test_cdelt_and_pc_are_read_as_well_as_cd() -> None:
    header = fits.Header(Sky(SCALE, [], {}).header())
    for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        del header[key]
    header.update({"CDELT1": -SCALE / 3600, "CDELT2": SCALE / 3600, "PC1_1": 1.0, "PC2_2": 1.0})
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, SHAPE[1], SHAPE[0]
    header["RADECSYS"], header["CTYPE1A"], header["CRPIX1A"] = "ICRS", "LINEAR", 3.0
    found = read_geometry(header, Path("a.fits"), "a frame")
    xy = np.array([[12.0, 150.0]])
    np.testing.assert_allclose(found.sky(xy), geometry("TAN").sky(xy), atol=1e-10)
    assert found.pixel_area == pytest.approx((SCALE / 3600) ** 2) and NOISE > 0
