"""Fits of calibrations, which find what was put in."""

import numpy as np
import pytest
from scipy import optimize, stats

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration, with_temperature
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.predict.fit import bin_of, fit_calibration, fit_pit, fit_temperature, stacking_weights
from tests.helpers.pdfs import gaussians

BINS = RedshiftBins(60, 0.0, 0.6)


def survey(n: int, claimed: float, true: float, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """PDFs of a claimed width, and redshifts that scatter by the true one about their means plus a shift."""
    rng = np.random.default_rng(3)
    mean = rng.uniform(0.2, 0.4, n)
    return gaussians(mean, claimed, BINS.edges()), np.clip(mean + shift + true * rng.normal(size=n), 0, 0.599)


def ks(pdf: np.ndarray, z: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of the PIT from a uniform distribution."""
    return float(stats.kstest(metrics.pit(pdf, BINS.edges(), z), "uniform").statistic)


def test_the_temperature_is_that_of_the_greatest_score() -> None:
    pdf, z = survey(4000, claimed=0.02, true=0.04)
    k = bin_of(BINS, z)
    found = fit_temperature(pdf, k)

    def loss(log_t: float) -> float:
        return float(-np.log(with_temperature(pdf, np.exp(log_t))[np.arange(len(k)), k]).mean())

    best = optimize.minimize_scalar(loss, bounds=(-2, 3), method="bounded", options={"xatol": 1e-6})
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert found == pytest.approx(
        (0.04 / 0.02) ** 2, rel=0.1
    )  # p^(1/T) of a Gaussian: variance T times as large


def test_the_map_of_the_pit_has_the_moments_of_the_pit() -> None:
    """The condition of the greatest likelihood in an exponential family; the weak prior moves it by 1e-4."""
    u = np.random.default_rng(1).beta(2.0, 3.0, 5000)
    r = Calibration(pit=fit_pit(u, 3))
    x = np.linspace(0, 1, 20_001)
    weight, middle = np.diff(r.mapped(x)), (x[1:] + x[:-1]) / 2
    for power in (1, 2, 3):
        assert weight @ middle**power == pytest.approx((u**power).mean(), abs=2e-4)
    assert np.isfinite(fit_pit(np.ones(100), 4)).all()


@pytest.mark.parametrize("method", ["auto", "temperature", "pit"])
def test_a_fit_calibrates_objects_that_it_has_not_seen(method: str) -> None:
    pdf, z = survey(8000, claimed=0.02, true=0.035)
    seen, unseen = slice(0, 4000), slice(4000, None)
    found = fit_calibration(pdf[seen].astype(np.float32), BINS, z[seen], method)
    assert ks(pdf[unseen], z[unseen]) > 0.08
    assert ks(found.calibration(pdf[unseen]), z[unseen]) < 0.03
    density = found.calibration(pdf[unseen])[np.arange(4000), bin_of(BINS, z[unseen])] / BINS.width
    assert found.score == pytest.approx(np.log(density).mean(), abs=0.1) and found.score > found.score_before
    assert found.pit_ks == pytest.approx(ks(found.calibration(pdf[seen]), z[seen]), abs=1e-5)
    assert found.pit_ks_before == pytest.approx(ks(pdf[seen], z[seen]), abs=1e-5)
    assert bool(found.calibration.pit) == (method == "pit") or method == "auto"


def test_a_shift_takes_the_map_of_the_pit() -> None:
    pdf, z = survey(8000, claimed=0.03, true=0.03, shift=0.02)
    seen, unseen = slice(0, 4000), slice(4000, None)
    found = fit_calibration(pdf[seen], BINS, z[seen]).calibration
    assert found.pit and ks(found(pdf[unseen]), z[unseen]) < 0.03 < 0.2 < ks(pdf[unseen], z[unseen])


def test_calibrated_pdfs_stay_almost_as_they_are() -> None:
    pdf, z = survey(4000, claimed=0.03, true=0.03)
    found = fit_calibration(pdf, BINS, z).calibration
    assert np.abs(found(pdf) - pdf).sum(axis=1).mean() < 0.1
    assert len(found.pit) <= 3, "a high degree would follow the noise of these objects"


def test_too_few_objects_and_unknown_methods_are_refused() -> None:
    pdf, z = survey(49, 0.03, 0.03)
    with pytest.raises(BadInput, match="49 objects of known redshift"):
        fit_calibration(pdf, BINS, z)
    with pytest.raises(BadInput, match="method 'platt': want one of"):
        fit_calibration(pdf, BINS, z, "platt")


def test_stacking_weights_have_the_greatest_score() -> None:
    rng = np.random.default_rng(2)
    mean = rng.uniform(0.2, 0.4, 3000)
    z = np.clip(mean + 0.02 * rng.normal(size=3000), 0, 0.599)
    rows, k = np.arange(3000), bin_of(BINS, z)
    pdfs = [
        gaussians(mean, 0.02, BINS.edges()),
        gaussians(mean + 0.02, 0.02, BINS.edges()),
        gaussians(mean, 0.05, BINS.edges()),
    ]
    p = np.stack([pdf[rows, k] for pdf in pdfs], axis=1)
    weights = np.array(stacking_weights(p))
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all() and weights[0] > 0.8
    best = -np.log(np.maximum(p, 1e-12) @ weights).mean()
    for direction in rng.normal(size=(50, 3)):
        other = np.clip(weights + 0.02 * direction, 0, None)
        other /= other.sum()
        assert -np.log(np.maximum(p, 1e-12) @ other).mean() > best - 1e-6


def test_a_gain_of_rounding_is_a_tie_that_no_change_wins() -> None:
    # All of the probability in the right bin, z_spec in its middle: each PIT is 1/2, and no map can gain.
    k = np.random.default_rng(4).integers(0, BINS.n, 200)
    found = fit_calibration(np.eye(BINS.n)[k], BINS, np.asarray((k + 0.5) * BINS.width, np.float64))
    assert found.calibration == Calibration()
