"""Agreement with the metrics of qp and RAIL."""

import numpy as np
import pytest

from hpcphotoz.evaluation import metrics
from tests.helpers.pdfs import EDGES, drawn_from, random_pdfs

N = 500


@pytest.mark.slow
def test_qp_finds_the_same() -> None:
    qp = pytest.importorskip("qp", reason="needs qp-prob: pip install 'hpcphotoz[dev]'")
    from qp.metrics.brier import Brier
    from qp.metrics.goodness_of_fit import goodness_of_fit_metrics
    from scipy import stats

    pdf = random_pdfs(N) + 1e-4
    pdf /= pdf.sum(axis=1, keepdims=True)
    z = drawn_from(pdf, np.random.default_rng(1))
    theirs = qp.metrics.pit.PIT(qp.Ensemble(qp.hist, data={"bins": EDGES, "pdfs": pdf}), z)
    pit = metrics.pit(pdf, EDGES, z)
    # qp's histogram holds densities that it has normalised in floating point.
    np.testing.assert_allclose(pit, theirs.pit_samps, atol=1e-9)
    assert metrics.pit_ks(pit) == pytest.approx(theirs.evaluate_PIT_KS().statistic, abs=1e-9)
    assert metrics.pit_cvm(pit) == pytest.approx(theirs.evaluate_PIT_CvM().statistic, abs=1e-7)
    anderson = goodness_of_fit_metrics["ad"](stats.uniform, pit)
    assert metrics.pit_ad(pit) == pytest.approx(anderson, rel=1e-9)
    outcome = (np.searchsorted(EDGES, z, side="right") - 1)[:, None] == np.arange(180)
    assert metrics.brier(pdf, EDGES, z).mean() == pytest.approx(
        Brier(pdf, outcome.astype(int)).evaluate(), rel=1e-12
    )


@pytest.mark.slow
def test_rail_finds_the_same() -> None:
    reason = "needs pz-rail-base: pip install 'hpcphotoz[rail]'"
    rail = pytest.importorskip("rail.evaluation.metrics.pointestimates", reason=reason)
    rng = np.random.default_rng(2)
    z_spec = rng.uniform(0, 0.4, N)
    z_phot = z_spec + rng.normal(0.003, 0.02, N) * rng.choice([1, 1, 1, 6], N)
    dz = metrics.residuals(z_phot, z_spec)
    for name, of in (
        ("PointBias", metrics.rail_bias),
        ("PointSigmaIQR", metrics.rail_sigma_iqr),
        ("PointOutlierRate", metrics.rail_outlier_rate),
        ("PointSigmaMAD", metrics.sigma_mad),
    ):
        assert of(dz) == pytest.approx(getattr(rail, name)(z_phot, z_spec).evaluate(), rel=1e-12), name
    assert metrics.rail_outlier_rate(dz) > 0.02
    assert metrics.summary(z_phot, z_spec)["rail_bias"] == metrics.rail_bias(dz) != metrics.bias(dz)


@pytest.mark.slow
def test_rail_and_qp_find_the_same_cde_loss_on_a_grid() -> None:
    reason = "needs pz-rail-base: pip install 'hpcphotoz[rail]'"
    cdeloss = pytest.importorskip("rail.evaluation.metrics.cdeloss", reason=reason)
    qp = pytest.importorskip("qp")
    pdf = random_pdfs(N, 20)
    edges = np.linspace(0, 0.4, 21)
    z = np.random.default_rng(3).uniform(0.01, 0.39, N)
    grid = np.linspace(0, 0.4, 20_001)
    ensemble = qp.Ensemble(qp.hist, data={"bins": edges, "pdfs": pdf})
    theirs = cdeloss.CDELoss(ensemble, grid, z).evaluate().statistic
    # The trapezium rule is wrong by half a grid cell at each of 21 edges of 1,000 cells apart.
    assert metrics.cde_loss(pdf, edges, z).mean() == pytest.approx(theirs, rel=5e-3)
