"""The HEALPix pixel of our own function is that of astropy_healpix."""

from itertools import product

import numpy as np
import pytest
from astropy import units
from astropy_healpix import HEALPix

from hpcphotoz.data.select.healpix import MAX_NSIDE, nested_pixel

NSIDES = [2**k for k in range(14)]


def reference(ra: np.ndarray, dec: np.ndarray, nside: int) -> np.ndarray:
    sky = HEALPix(nside, order="nested")
    return np.asarray(sky.lonlat_to_healpix(ra * units.deg, dec * units.deg))


def test_the_sides_are_all_powers_of_two() -> None:
    assert NSIDES[-1] == MAX_NSIDE


@pytest.mark.parametrize("nside", NSIDES)
def test_pixels_of_random_positions(nside: int) -> None:
    rng = np.random.default_rng(nside)
    ra, dec = rng.uniform(0, 360, 20000), np.degrees(np.arcsin(rng.uniform(-1, 1, 20000)))
    found = nested_pixel(ra, dec, nside)
    assert np.array_equal(found, reference(ra, dec, nside))
    assert found.min() >= 0 and found.max() < 12 * nside**2
    if nside <= 8:
        assert len(np.unique(found)) == 12 * nside**2, "every pixel of the sphere is met"


@pytest.mark.parametrize("nside", NSIDES)
def test_pixels_around_the_poles(nside: int) -> None:
    ra = np.tile(np.arange(0.5, 360, 3), 8)
    near = np.repeat([90, 90 - 1e-9, 90 - 1e-7, 90 - 1e-5, 90 - 1e-3, 89.9, 88.0, 42.0], 120)
    for dec in (near, -near):
        assert np.array_equal(nested_pixel(ra, dec, nside), reference(ra, dec, nside))


@pytest.mark.parametrize("nside", NSIDES)
def test_right_ascension_has_no_seam(nside: int) -> None:
    rng = np.random.default_rng(nside)
    dec = rng.uniform(-90, 90, 500)
    for ra in (np.zeros(500), np.full(500, 1e-9), rng.uniform(0, 360, 500).round(3)):
        first = nested_pixel(ra, dec, nside)
        assert np.array_equal(first, reference(ra, dec, nside))
        if ra[0] == 0:
            assert np.array_equal(nested_pixel(ra + 360, dec, nside), first)
            assert np.array_equal(nested_pixel(ra - 360, dec, nside), first)
            assert np.array_equal(nested_pixel(ra - 1e-20, dec, nside), first), "rounds to 360"
    before = np.full(500, 360 - 1e-9)
    assert np.array_equal(nested_pixel(before, dec, nside), reference(before, dec, nside))
    assert np.array_equal(nested_pixel(before - 360, dec, nside), reference(before, dec, nside))


@pytest.mark.parametrize("nside", NSIDES)
def test_centres_of_pixels_and_points_beside_their_corners(nside: int) -> None:
    """A pixel's centre has the pixel's number, and so has a point just inside each of its corners."""
    rng, sky = np.random.default_rng(nside), HEALPix(nside, order="nested")
    n = 12 * nside**2
    number = np.arange(n) if n <= 3072 else np.unique(np.r_[rng.integers(0, n, 3000), 0, n - 1])
    for dx, dy in ((0.5, 0.5), (1e-4, 1e-4), (1 - 1e-4, 1e-4), (1e-4, 1 - 1e-4), (1 - 1e-4, 1 - 1e-4)):
        lon, lat = sky.healpix_to_lonlat(number, dx=dx, dy=dy)
        assert np.array_equal(nested_pixel(lon.to_value("deg"), lat.to_value("deg"), nside), number)


def test_exact_boundaries_belong_to_one_of_the_neighbours() -> None:
    """On an edge the last bit of a sine decides; the pixel is one of those that meet there."""
    ra, dec = (grid.ravel() for grid in np.meshgrid(np.arange(0, 360.1, 22.5), [0, 41.8103148957786, 60, 90]))
    step = 1e-7
    for signed in (dec, -dec):
        for nside in (1, 2, 4, 32):
            found = nested_pixel(ra, signed, nside)
            around = [
                reference(ra + a, np.clip(signed + d, -90, 90), nside)
                for a, d in product((-step, 0, step), repeat=2)
            ]
            pole = np.abs(signed) == 90  # the top pixels of four faces meet in it
            assert (np.any([found == one for one in around], axis=0) | pole).all()
            north, last = signed[0] >= 0 and signed.max() == 90, nside**2 - 1
            assert set((found[pole] % nside**2).tolist()) == {last if north else 0}
            assert set((found[pole] // nside**2).tolist()) == ({0, 1, 2, 3} if north else {8, 9, 10, 11})
