"""The simulated population: depth, colours and extinction of a magnitude-limited survey."""

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("speclite")

from hpcphotoz.sources.simulation.population import Galaxy, draw_galaxy
from hpcphotoz.sources.simulation.survey_tables import (
    EXTINCTION,
    Survey,
    SurveyTables,
    make_survey_tables,
    mixture,
)


@pytest.fixture(scope="module")
def galaxies(tables: SurveyTables) -> list[Galaxy]:
    rng = np.random.default_rng(5)
    return [draw_galaxy(tables, rng) for _ in range(3000)]


def test_survey_has_the_depth_of_the_main_sample(galaxies: list[Galaxy]) -> None:
    z, r = np.array([g.z for g in galaxies]), np.array([g.r_magnitude for g in galaxies])
    assert 0.005 <= z.min() and z.max() <= 0.4
    assert 0.08 < np.median(z) < 0.11
    assert r.max() < 17.8
    # Counts of a shallow survey grow as 10^(0.6 m), a factor 4 a magnitude; redshift takes some of it.
    assert 2.8 < (r < 17.6).sum() / (r < 16.6).sum() < 4.4
    classes = np.bincount([g.galaxy_class for g in galaxies], minlength=3) / len(galaxies)
    assert classes.min() > 0.05 and classes.max() < 0.6
    ebv = np.array([g.ebv for g in galaxies])
    assert 0.02 < np.median(ebv) < 0.05 and ebv.min() > 0


def test_colours_redden_with_redshift(tables: SurveyTables, galaxies: list[Galaxy]) -> None:
    g_r = [-2.5 * np.log10(np.divide(*mixture(tables, z, 0.0)[[1, 2]])) for z in (0.02, 0.1, 0.2, 0.3)]
    assert (np.diff(g_r) > 0.1).all()
    # An elliptical of the CWW set: g - r = 0.8 at rest, 1.0 at z = 0.1, 1.7 at z = 0.4.
    assert g_r[1] == pytest.approx(1.0, abs=0.05)
    early = [g for g in galaxies if g.galaxy_class == 0]
    flux = np.array([(g.flux_bulge + g.flux_disc) * 10 ** (0.4 * g.ebv * EXTINCTION) for g in early])
    colour, z = -2.5 * np.log10(flux[:, 1] / flux[:, 2]), np.array([g.z for g in early])
    assert np.corrcoef(colour, z)[0, 1] > 0.9


def test_mixture_meets_its_templates(tables: SurveyTables) -> None:
    for kind in range(4):
        np.testing.assert_allclose(mixture(tables, tables.z[7], kind), tables.relative_flux[7, kind])
    np.testing.assert_allclose(mixture(tables, 0.4, 9.0), tables.relative_flux[-1, 3])
    halfway = mixture(tables, tables.z[7], 1.5)
    np.testing.assert_allclose(halfway, tables.relative_flux[7, 1:3].mean(axis=0))


def test_extinction_dims_by_the_law_and_leaves_the_selection_alone() -> None:
    clear = make_survey_tables(Survey(ebv_median=1e-12))
    dusty = make_survey_tables(Survey(ebv_median=0.1, ebv_scatter=0.0))
    for seed in range(20):
        a = draw_galaxy(clear, np.random.default_rng(seed))
        b = draw_galaxy(dusty, np.random.default_rng(seed))
        ratio = (b.flux_bulge + b.flux_disc) / (a.flux_bulge + a.flux_disc)
        np.testing.assert_allclose(-2.5 * np.log10(ratio), 0.1 * EXTINCTION, atol=1e-9)
        assert b.r_magnitude == pytest.approx(a.r_magnitude)


def test_bulges_are_redder_than_discs(galaxies: list[Galaxy]) -> None:
    spirals = [g for g in galaxies if g.galaxy_class == 1]
    redder = [g.flux_bulge[2] * g.flux_disc[1] > g.flux_bulge[1] * g.flux_disc[2] for g in spirals]
    assert np.mean(redder) > 0.95
