"""Rendered galaxies: flux, centre and profile are right, and noise is that of sky and photons."""

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("speclite")

from hpcphotoz.sources.constants import (
    PIXEL_SCALE,
)
from hpcphotoz.sources.simulation.exposure import CAMERA, Exposure, add_noise
from hpcphotoz.sources.simulation.population import Galaxy
from hpcphotoz.sources.simulation.rendering import STAMP, _grid_size, half_maximum, render
from hpcphotoz.sources.simulation.survey_tables import R_BAND


def compact(**changes: object) -> Galaxy:
    flux = np.array([10.0, 40.0, 90.0, 130.0, 160.0])
    values: dict[str, object] = {
        "z": 0.1,
        "ebv": 0.0,
        "r_magnitude": 17.5,
        "galaxy_class": 0,
        "flux_bulge": 0.4 * flux,
        "flux_disc": 0.6 * flux,
        "radius_bulge": 0.5,
        "radius_disc": 1.0,
        "axis_ratio_bulge": 0.9,
        "axis_ratio_disc": 0.5,
        "position_angle": 0.0,
    }
    return Galaxy(**{**values, **changes})  # type: ignore[arg-type]


def exposure(dx: float = 0.0, dy: float = 0.0) -> Exposure:
    return Exposure(np.full(5, 1.4), np.array(CAMERA.sky_sigma), (dx, dy))


def test_render_conserves_flux_and_centres() -> None:
    galaxy, y_x = compact(), np.mgrid[:STAMP, :STAMP] - (STAMP - 1) / 2
    image = render(galaxy, exposure(0.2, -0.15))
    total = image.sum(axis=(1, 2))
    # 0.5 %: what a de Vaucouleurs profile of this size leaves outside the stamp.
    np.testing.assert_allclose(total, galaxy.flux_bulge + galaxy.flux_disc, rtol=5e-3)
    y, x = ((y_x[axis] * image).sum(axis=(1, 2)) / total for axis in (0, 1))
    np.testing.assert_allclose(x, 0.2, atol=0.01)
    np.testing.assert_allclose(y, -0.15, atol=0.01)
    assert image.min() > -1e-4 * image.max()  # a wrong phase or grid makes the image ring


def test_render_matches_galsim_drawing_the_same_scene() -> None:
    import galsim

    galaxy, camera = compact(position_angle=0.6), CAMERA
    image = render(galaxy, exposure())[R_BAND]
    bulge = galsim.DeVaucouleurs(half_light_radius=0.5 * np.sqrt(0.9), trunc=4.0 * np.sqrt(0.9))
    disc = galsim.Exponential(half_light_radius=1.0 * np.sqrt(0.5))
    light = bulge.shear(q=0.9, beta=0.6 * galsim.radians) * galaxy.flux_bulge[R_BAND]
    light += disc.shear(q=0.5, beta=0.6 * galsim.radians) * galaxy.flux_disc[R_BAND]
    sigma = 1.4 / (2 * half_maximum(camera.wide_size, camera.wide_height))
    wide = camera.wide_height * camera.wide_size**2
    psf = galsim.Gaussian(sigma=sigma) / (1 + wide)
    psf += galsim.Gaussian(sigma=sigma * camera.wide_size) * (wide / (1 + wide))
    drawn = galsim.Convolve(light, psf).drawImage(nx=STAMP, ny=STAMP, scale=PIXEL_SCALE).array
    # GalSim's default accuracy (folding_threshold 5e-3) spreads 0.5 % of the light over the stamp.
    np.testing.assert_allclose(image, drawn, atol=1e-3 * drawn.max())


@pytest.mark.parametrize("radius", [40.0, 110.0])  # pixels
def test_a_large_galaxy_does_not_wrap_around(radius: float) -> None:
    import galsim

    size = radius * PIXEL_SCALE
    galaxy = compact(radius_bulge=size, axis_ratio_bulge=1.0, radius_disc=size, axis_ratio_disc=1.0)
    image = render(galaxy, exposure())[R_BAND]
    accurate = galsim.GSParams(folding_threshold=1e-5, maximum_fft_size=8192)
    bulge = galsim.DeVaucouleurs(half_light_radius=size, trunc=8 * size, gsparams=accurate)
    disc = galsim.Exponential(half_light_radius=size, gsparams=accurate)
    y, x = np.mgrid[:STAMP, :STAMP] - (STAMP - 1) / 2
    place = np.hypot(x, y) * PIXEL_SCALE
    area = PIXEL_SCALE**2
    light = galaxy.flux_bulge[R_BAND] * np.vectorize(lambda r: bulge.xValue(r, 0.0))(place) * area
    light += galaxy.flux_disc[R_BAND] * np.vectorize(lambda r: disc.xValue(r, 0.0))(place) * area
    # Beyond 20 pixels the seeing moves such a profile by 0.3 %; light that wrapped around a grid of 256
    # pixels added 2 % at 40 pixels and 26 % at 110.
    outside = np.hypot(x, y) > 20
    np.testing.assert_allclose(image[outside], light[outside], rtol=5e-3)


def test_the_grid_grows_with_the_galaxy() -> None:
    for radius, size in ((1.0, 128), (10.0, 128), (10.1, 256), (28.0, 256), (28.1, 512), (112.0, 1024)):
        galaxy = compact(radius_bulge=radius * PIXEL_SCALE, radius_disc=0.3)
        assert _grid_size(galaxy, STAMP) == size


def test_point_spread_function_has_its_nominal_width() -> None:
    point = compact(radius_bulge=0.01, radius_disc=0.01)
    image = render(point, exposure(0.5, 0.5))[R_BAND]
    row = image[STAMP // 2, STAMP // 2 :]
    half = np.interp(-0.5 * row[0], -row, np.arange(len(row)))
    # The square pixel widens the 1.4" profile by 2 %.
    assert 2 * half * PIXEL_SCALE == pytest.approx(1.42, abs=0.03)


def test_noise_is_sky_plus_photons() -> None:
    rng, camera, conditions = np.random.default_rng(0), CAMERA, exposure()
    empty = add_noise(np.zeros((5, STAMP, STAMP)), conditions, rng)
    # 4096 pixels give a standard deviation to 1.1 %; 5 % is 4.5 of those.
    np.testing.assert_allclose(empty.std(axis=(1, 2)), conditions.sky_sigma, rtol=0.05)
    bright = add_noise(np.full((5, STAMP, STAMP), 10.0), conditions, rng)
    expected = np.sqrt(conditions.sky_sigma**2 + 10.0 / np.array(camera.electrons))
    np.testing.assert_allclose(bright.std(axis=(1, 2)), expected, rtol=0.05)
