"""The error that pixels allow: what a fit of noisy images has, and larger where less is known."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("speclite")

from benchmarks.paper import limit
from hpcphotoz.sources.simulation.exposure import Exposure, add_noise, draw_exposure, noise_variance
from hpcphotoz.sources.simulation.population import Properties, draw_properties, generator, make_galaxy
from hpcphotoz.sources.simulation.rendering import render
from hpcphotoz.sources.simulation.survey_tables import SurveyTables, make_survey_tables


@pytest.fixture(scope="module")
def tables() -> SurveyTables:
    return make_survey_tables()


def drawn(tables: SurveyTables, index: int) -> tuple[Properties, Exposure]:
    rng = generator(3, index)
    return draw_properties(tables, rng), draw_exposure(rng)


def knows_all_but_z() -> np.ndarray:
    prior = np.diag(np.full(len(limit.SCALARS) + len(limit.COLOURS) + len(limit.EXPOSURE), np.inf))
    prior[0, 0] = 0
    return prior


def test_with_all_else_known_it_is_the_scatter_of_a_fit_of_the_redshift(tables: SurveyTables) -> None:
    of, exposure = drawn(tables, 0)
    error = limit.redshift_error(tables, of, exposure, knows_all_but_z())
    grid = of.z + error * np.linspace(-6, 6, 13)
    models = np.array([render(make_galaxy(tables, replace(of, z=z)), exposure) for z in grid])
    image = render(make_galaxy(tables, of), exposure)
    variance, rng = noise_variance(image, exposure), np.random.default_rng(0)
    fits = []
    for _ in range(200):
        seen = add_noise(image, exposure, rng)
        chi2 = ((seen - models) ** 2 / variance).sum((1, 2, 3))
        a, b, _ = np.polyfit(grid, chi2, 2)
        fits.append(-b / (2 * a))
    # Of n fits the scatter is known to 1 / sqrt(2n) = 5 %, the mean to 1 / sqrt(n): three times that.
    assert np.std(fits) == pytest.approx(error, rel=0.15)
    assert np.mean(fits) == pytest.approx(of.z, abs=3 * error / 200**0.5)


def test_the_derivative_is_that_at_the_redshift_also_of_near_galaxies(tables: SurveyTables) -> None:
    of, exposure = drawn(tables, 0)
    near, h = replace(of, z=0.0134), 2e-5
    images = [render(make_galaxy(tables, replace(near, z=near.z + k * h)), exposure) for k in range(-2, 3)]
    slope = (8 * (images[3] - images[1]) - (images[4] - images[0])) / (12 * h)  # error of order h^4
    expected = ((slope**2 / noise_variance(images[2], exposure)).sum()) ** -0.5
    found = limit.redshift_error(tables, near, exposure, knows_all_but_z())
    # Kinks of the survey's tables, 0.0015 apart, allow no less.
    assert found == pytest.approx(expected, rel=5e-3)


def test_properties_stay_in_their_interval(tables: SurveyTables) -> None:
    of, exposure = drawn(tables, 0)
    prior = knows_all_but_z()
    place = limit.SCALARS.index("bulge_fraction")
    prior[place, place], prior[0, 0] = 0, np.inf
    # The image is linear in the fraction: its error is the same at both ends and between them.
    for end in (0.0, 1.0, 0.99995):
        there = replace(of, bulge_fraction=end)
        image = render(make_galaxy(tables, there), exposure)
        other = render(make_galaxy(tables, replace(of, bulge_fraction=0.5)), exposure)
        slope = (image - other) / (end - 0.5)
        expected = ((slope**2 / noise_variance(image, exposure)).sum()) ** -0.5
        assert limit.redshift_error(tables, there, exposure, prior) == pytest.approx(expected, rel=1e-5)


def test_it_is_larger_where_less_is_known_and_at_most_the_priors(tables: SurveyTables) -> None:
    priors = limit.class_priors(tables)
    for index in range(3):
        of, exposure = drawn(tables, index)
        prior = priors[of.galaxy_class]
        known = np.flatnonzero(np.isfinite(prior.diagonal()))
        alone = np.linalg.inv(prior[np.ix_(known, known)])[0, 0] ** 0.5
        error = limit.redshift_error(tables, of, exposure, prior)
        noisy = replace(exposure, sky_sigma=10 * exposure.sky_sigma)
        noisier = limit.redshift_error(tables, of, noisy, prior)
        assert limit.redshift_error(tables, of, exposure, knows_all_but_z()) < error < noisier < alone


@pytest.mark.slow
def test_the_score_is_that_of_the_errors(tables: SurveyTables) -> None:
    priors = limit.class_priors(tables)
    each = []
    for index in range(4):
        of, exposure = drawn(tables, index)
        each.append(limit.redshift_error(tables, of, exposure, priors[of.galaxy_class]) / (1 + of.z))
    found = limit.measure(4, 3)
    assert min(each) < found["sigma_mad"] < max(each) and 0 < found["error"] < max(each) and found["n"] == 4
    alone = limit.measure(1, 3)  # normal deviates of one sigma
    assert alone["sigma_mad"] == pytest.approx(each[0], rel=0.01)
