"""Calibration: PIT statistics agree with scipy, coverage with probability, and both see what is wrong."""

import numpy as np
import pytest
from scipy import stats

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.metrics import LEVELS
from tests.helpers.pdfs import EDGES, Floats, drawn_from, random_pdfs


@pytest.mark.parametrize("n", [2, 50, 3001])
@pytest.mark.parametrize("power", [1.0, 1.7])
def test_statistics_are_those_of_scipy(n: int, power: float) -> None:
    pit = 1e-3 + 0.998 * np.random.default_rng(n).random(n) ** power
    assert metrics.pit_ks(pit) == pytest.approx(stats.kstest(pit, "uniform").statistic, rel=1e-12)
    assert metrics.pit_cvm(pit) == pytest.approx(stats.cramervonmises(pit, "uniform").statistic, rel=1e-10)
    # scipy has Anderson-Darling of a given distribution only in `goodness_of_fit`, with a Monte Carlo p.
    known = {"loc": 0, "scale": 1}
    found = stats.goodness_of_fit(stats.uniform, pit, known_params=known, statistic="ad", n_mc_samples=1)
    assert metrics.pit_ad(pit) == pytest.approx(found.statistic, rel=1e-9, abs=1e-12)


def test_counted_values_give_the_statistic_of_the_repeated_ones() -> None:
    rng = np.random.default_rng(0)
    values, counts = np.sort(rng.random(30)), rng.integers(0, 5, (3, 30))
    for of in (metrics.pit_ks, metrics.pit_cvm, metrics.pit_ad):
        together = of(values, counts)
        assert together.shape == (3,)
        for row, found in zip(counts, together, strict=True):
            assert found == pytest.approx(of(np.repeat(values, row)), rel=1e-12)


def test_a_pit_of_zero_or_one_leaves_anderson_darling_finite() -> None:
    pit = np.append(np.linspace(0.01, 0.99, 99), [0.0, 1.0])
    assert np.isfinite(metrics.pit_ad(pit))
    assert metrics.pit_ad(pit) > metrics.pit_ad(np.clip(pit, 1e-4, 1 - 1e-4))


def test_the_histogram_counts_every_pit_once() -> None:
    assert metrics.pit_histogram(np.array([0.0, 0.05, 0.5, 0.999, 1.0])).tolist() == (
        [1, 1, *[0] * 8, 1, *[0] * 8, 2]
    )
    with pytest.raises(ValueError, match="from 0 to 1"):
        metrics.pit_histogram(np.array([1.1]))


@pytest.mark.parametrize("kind", ["central", "hpd"])
def test_intervals_of_the_true_pdf_hold_the_redshift_as_often_as_they_say(kind: str) -> None:
    n = 3_000
    rng = np.random.default_rng(8)
    pdf = random_pdfs(n)
    z = drawn_from(pdf, rng)

    def levels(given: Floats) -> Floats:
        if kind == "hpd":
            return metrics.hpd_level(given, EDGES, z)
        return metrics.central_level(metrics.pit(given, EDGES, z))

    # Levels are uniform: Kolmogorov-Smirnov exceeds 1.95 / sqrt(N) once in a thousand draws.
    assert metrics.pit_ks(levels(pdf)) < 1.95 / n**0.5
    for at in LEVELS:
        assert metrics.coverage(levels(pdf), at) == pytest.approx(at, abs=4 * (at * (1 - at) / n) ** 0.5)
    narrow = pdf**4
    narrow /= narrow.sum(axis=1, keepdims=True)
    assert metrics.coverage(levels(narrow), 0.68) < 0.6


def test_the_highest_density_region_is_the_smallest() -> None:
    """Of two intervals of the same probability, the one of highest density is shorter."""
    pdf = random_pdfs(1, seed=3)[0]
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    levels = metrics.hpd_level(np.repeat(pdf[None], 180, axis=0), EDGES, middle)
    central = metrics.central_level(metrics.pit(np.repeat(pdf[None], 180, axis=0), EDGES, middle))
    assert (levels <= 0.68).sum() < (central <= 0.68).sum()


def test_equal_densities_are_filled_from_low_redshift() -> None:
    flat = np.full((4, 4), 0.25)
    z = np.array([0.0, 0.5, 2.25, 4.0])
    np.testing.assert_allclose(metrics.hpd_level(flat, np.arange(5.0), z), [0, 0.125, 0.5625, 1])
