"""Coverage of conformal intervals, against the probability that exchangeability gives."""

import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz.evaluation.conformal.intervals import (
    LEVELS,
    Calibration,
    calibrate,
    central_interval,
    coverage,
    mean_width,
)
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.models.bins import RedshiftBins

BINS = RedshiftBins(80, 0.0, 0.4)


def pdfs(n: int, width: float, seed: int, shift: float = 0.0) -> tuple[RedshiftPdf, npt.NDArray[np.float32]]:
    """Gaussian PDFs of a width, and redshifts that scatter by 0.02 about their means."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.1, 0.3, n)
    z = (mean + shift + 0.02 * rng.normal(size=n)).astype(np.float32)
    p = np.exp(-((BINS.centres().numpy() - mean[:, None]) ** 2) / (2 * width**2))
    return RedshiftPdf(p / p.sum(axis=1, keepdims=True), BINS), z


@pytest.mark.parametrize("width", [0.005, 0.02, 0.06])  # too narrow, right, too wide
def test_the_coverage_is_the_nominal_one_whatever_the_pdfs_are(width: float) -> None:
    n, repeats = 39, 400
    pdf, z = pdfs(repeats * 2 * n, width, seed=1)
    central = central_interval(pdf).reshape(2, len(LEVELS), repeats, 2 * n)
    rows = z.reshape(repeats, 2 * n)
    found = []
    for k in range(repeats):
        calibration = calibrate(central[:, :, k, :n], rows[k, :n])
        interval = calibration.interval(central[:, :, k, n:], BINS.z_min, BINS.z_max)
        found.append(coverage(interval, rows[k, n:]))
    # With n = 39 the expected coverage is exactly ceil(40 level) / 40: 0.7, 0.9 and 0.95.
    expected = np.ceil(40 * np.array(LEVELS) - 1e-9) / 40
    error = np.std(found, axis=0) / np.sqrt(repeats)
    assert np.all(np.abs(np.mean(found, axis=0) - expected) < 4 * error + 0.002)
    before = np.mean([coverage(central[:, :, k], rows[k]) for k in range(repeats)], axis=0)
    assert np.all(before < 0.5) if width < 0.01 else True
    assert np.all(before > LEVELS) if width > 0.05 else True


def test_intervals_grow_with_the_level_and_shrink_where_pdfs_are_too_wide() -> None:
    pdf, z = pdfs(500, 0.06, seed=2)
    central = central_interval(pdf)
    calibration = calibrate(central, z)
    interval = calibration.interval(central, BINS.z_min, BINS.z_max)
    assert np.all(calibration.widening < 0) and np.all(np.diff(mean_width(interval)) > 0)
    assert np.all(mean_width(interval) < mean_width(central))
    np.testing.assert_allclose(central[0, 0], pdf.quantiles(0.16), atol=1e-12)
    np.testing.assert_allclose(central[1, 2], pdf.quantiles(0.975), atol=1e-12)


def test_too_few_objects_take_the_whole_range_and_an_empty_interval_its_middle() -> None:
    pdf, z = pdfs(10, 0.02, seed=3)
    central = central_interval(pdf)
    interval = calibrate(central, z).interval(central, BINS.z_min, BINS.z_max)
    assert np.all(interval[0, 2] == 0.0) and np.all(interval[1, 2] == 0.4)  # 95 % takes 19 objects
    crossed = Calibration(np.array([-1.0, -1.0, -1.0]), 100).interval(central, 0.0, 0.4)
    np.testing.assert_allclose(crossed, np.broadcast_to(central.mean(axis=0), crossed.shape))
    assert np.all(mean_width(crossed) == 0)


def test_a_shift_of_the_measured_objects_breaks_the_coverage() -> None:
    central = central_interval(pdfs(400, 0.02, seed=4)[0])
    calibration = calibrate(central, pdfs(400, 0.02, seed=4)[1])
    pdf, z = pdfs(400, 0.02, seed=5, shift=0.08)
    found = coverage(calibration.interval(central_interval(pdf), 0.0, 0.4), z)
    assert np.all(found < 0.1)
