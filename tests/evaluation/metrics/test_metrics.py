"""Metrics: known values, an independent numerical integral, calibration, invariances."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz.evaluation import metrics
from tests.helpers.pdfs import EDGES, drawn_from, random_pdfs

Floats = npt.NDArray[np.float64]


def test_residuals_by_hand() -> None:
    dz = metrics.residuals(np.array([0.11, 0.2, 0.5]), np.array([0.1, 0.2, 0.25]))
    np.testing.assert_allclose(dz, [0.01 / 1.1, 0.0, 0.2], atol=1e-15)
    assert metrics.bias(dz) == pytest.approx((0.01 / 1.1 + 0.2) / 3)
    assert metrics.sigma_mad(dz) == pytest.approx(1.4826 * 0.01 / 1.1)
    assert metrics.eta(dz) == pytest.approx(1 / 3)
    assert metrics.eta(dz, threshold=0.2001) == 0


def test_sigma_mad_is_the_sigma_of_a_gaussian_and_ignores_offset_and_outliers() -> None:
    dz = np.random.default_rng(1).normal(0, 0.02, 200_000)
    # The MAD of N Gaussian draws scatters by 1.17 sigma / sqrt(N): 0.26 % here, five times that is allowed.
    assert metrics.sigma_mad(dz) == pytest.approx(0.02, rel=0.013)
    assert metrics.sigma_mad(dz + 0.3) == pytest.approx(metrics.sigma_mad(dz), rel=1e-9)
    spoilt = dz.copy()
    spoilt[:200] = 10.0
    assert metrics.sigma_mad(spoilt) == pytest.approx(0.02, rel=0.02)


def test_metrics_do_not_depend_on_the_order_of_objects() -> None:
    rng = np.random.default_rng(2)
    spec, phot, score = rng.uniform(0, 0.4, 501), rng.uniform(0, 0.4, 501), rng.uniform(0, 1, 501)
    shuffled = rng.permutation(501)
    here = metrics.summary(phot, spec, score, score)
    there = metrics.summary(phot[shuffled], spec[shuffled], score[shuffled], score[shuffled])
    assert here == pytest.approx(there, rel=1e-12)
    assert here["n"] == 501


def test_crps_of_a_narrow_pdf_is_the_distance() -> None:
    # A spike in bin k with z_spec d outside it: d, plus the ramp of the CDF inside the bin, width/3.
    width = EDGES[1]
    pdf = np.zeros((2, 180))
    pdf[:, 90] = 1.0
    z = np.array([EDGES[90] - 0.1, EDGES[91] + 0.05])
    np.testing.assert_allclose(metrics.crps(pdf, EDGES, z), [0.1 + width / 3, 0.05 + width / 3], atol=1e-12)
    # z_spec in the middle of the bin: two ramps from 0 to 1/2 over half a bin, width/12 in all.
    np.testing.assert_allclose(metrics.crps(pdf[:1], EDGES, EDGES[90:91] + width / 2), width / 12, atol=1e-14)


UNEVEN = np.array([0.0, 0.01, 0.3, 0.35, 0.7, 1.5, 1.6])


@pytest.mark.parametrize("edges", [EDGES, UNEVEN])
def test_crps_pit_and_cde_agree_with_a_fine_numerical_integral(edges: Floats) -> None:
    n = 40
    pdf = random_pdfs(n, len(edges) - 1)
    span = edges[-1] - edges[0]
    z = np.random.default_rng(4).uniform(edges[0] - 0.1 * span, edges[-1] + 0.1 * span, n)  # some lie outside
    grid = np.linspace(edges[0] - 0.2 * span, edges[-1] + 0.2 * span, 400_001)
    middle, step = (grid[1:] + grid[:-1]) / 2, grid[1] - grid[0]
    for i in range(n):
        corners = np.concatenate([[0], np.cumsum(pdf[i])])
        cdf = np.interp(middle, edges, corners)
        # The step function is resolved to one grid cell: an error of at most one step.
        assert metrics.crps(pdf, edges, z)[i] == pytest.approx(
            np.sum((cdf - (middle > z[i])) ** 2) * step, abs=step
        )
        assert metrics.pit(pdf, edges, z)[i] == pytest.approx(np.interp(z[i], edges, corners), abs=1e-12)
        density = np.append(pdf[i] / np.diff(edges), 0)
        held = np.searchsorted(edges, z[i], side="right") - 1 if edges[0] <= z[i] <= edges[-1] else -1
        expected = np.sum(density[:-1] ** 2 * np.diff(edges)) - 2 * density[held]
        assert metrics.cde_loss(pdf, edges, z)[i] == pytest.approx(expected, rel=1e-9)
        outcome = np.zeros(len(edges) - 1)
        if held >= 0:
            outcome[held] = 1
        beyond = 1.0 if held < 0 else 0.0  # an outcome that is in no bin
        brier = np.sum((pdf[i] - outcome) ** 2) + beyond
        assert metrics.brier(pdf, edges, z)[i] == pytest.approx(brier, rel=1e-12)
        own = density[held] if held >= 0 else 0
        region = (density[:-1] > own) | ((density[:-1] == own) & (np.arange(len(edges) - 1) < held))
        share = pdf[i][held] * (z[i] - edges[held]) / (edges[held + 1] - edges[held]) if held >= 0 else 1
        level = min(pdf[i][region].sum() + share, 1)
        assert metrics.hpd_level(pdf, edges, z)[i] == pytest.approx(level, abs=1e-12)


def test_pit_is_uniform_for_calibrated_pdfs_and_not_for_overconfident_ones() -> None:
    rng = np.random.default_rng(5)
    centre = rng.uniform(0.1, 0.3, (4000, 1))

    def gaussians(sigma: float) -> Floats:
        raw = np.exp(-0.5 * (((EDGES[1:] + EDGES[:-1]) / 2 - centre) / sigma) ** 2)
        return np.asarray(raw / raw.sum(axis=1, keepdims=True))

    z = drawn_from(gaussians(0.02), rng)
    # 1.95 / sqrt(N) is exceeded by a uniform sample once in a thousand times.
    assert metrics.pit_ks(metrics.pit(gaussians(0.02), EDGES, z)) < 1.95 / 4000**0.5
    assert metrics.pit_ks(metrics.pit(gaussians(0.01), EDGES, z)) > 2 * 1.95 / 4000**0.5


@pytest.mark.parametrize("score", [metrics.crps, metrics.cde_loss, metrics.brier])
def test_the_true_pdf_has_the_best_score(score: Callable[..., Floats]) -> None:
    rng = np.random.default_rng(6)
    pdf = np.repeat(random_pdfs(1), 4000, axis=0)
    z = drawn_from(pdf, rng)
    best = score(pdf, EDGES, z).mean()
    for other in (pdf**2, pdf**0.5, np.roll(pdf, 9, axis=1)):
        assert score(other / other.sum(axis=1, keepdims=True), EDGES, z).mean() > best


@pytest.mark.parametrize(
    ("phot", "spec"),
    [
        ([0.1, 0.2], [0.1]),
        ([], []),
        ([np.nan], [0.1]),
        ([0.1], [np.nan]),
        ([0.1], [-1.0]),
        ([[0.1]], [[0.1]]),
    ],
)
def test_unusable_redshifts_are_refused(phot: list[float], spec: list[float]) -> None:
    with pytest.raises(ValueError):
        metrics.residuals(np.array(phot), np.array(spec))


@pytest.mark.parametrize(
    ("pdf", "edges", "z"),
    [
        (np.ones((1, 4)), np.arange(5.0), np.ones(1)),
        (np.full((1, 4), 0.25), np.arange(4.0), np.ones(1)),
        (np.full((1, 4), 0.25), np.arange(5.0)[::-1], np.ones(1)),
        (np.full((1, 4), 0.25), np.arange(5.0), np.full(1, np.nan)),
        (np.array([[1.5, -0.5]]), np.arange(3.0), np.ones(1)),
    ],
)
def test_arrays_that_are_no_pdfs_are_refused(pdf: Floats, edges: Floats, z: Floats) -> None:
    for score in (metrics.pit, metrics.crps, metrics.cde_loss, metrics.brier, metrics.hpd_level):
        with pytest.raises(ValueError):
            score(pdf, edges, z)


def test_a_pit_is_never_above_1() -> None:
    """Sums of 180 probabilities end up to 2e-16 above 1, and `pit_ks` refuses a PIT above 1."""
    pdf = np.random.default_rng(0).random((2000, 180))
    pdf /= pdf.sum(axis=1, keepdims=True)
    assert (np.cumsum(pdf, axis=1)[:, -1] > 1).any(), "else nothing is tested"
    z_spec = np.full(len(pdf), 0.4)
    scores = metrics.pdf_scores(pdf, np.linspace(0, 0.4, 181), z_spec)
    assert (scores["pit"] <= 1).all() and metrics.summary(z_spec, z_spec, **scores)["pit_ks"] > 0.99
