"""Certificates of a linear network, of which the smoothed redshift and its worst case are known exactly.

<z> = 0.1 + 0.2 sigmoid(w . x) rises with w . x, so that the median over noisy copies is <z> itself, and the
worst change of norm R (in sky sigmas) moves w . x by R |w sky|: the bounds of Chiang et al. are tight.
"""

import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.certificate.radius import (
    certified_interval,
    certified_radii,
    judged,
    outlier_limits,
)
from hpcphotoz.evaluation.certificate.smoothing import Smoothing
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float64]
BINS = RedshiftBins(2, 0.0, 0.4)
NORM = 0.8  # |w sky|: change of w . x by a change of norm 1


def redshift(logit: Floats) -> Floats:
    return np.asarray(0.1 + 0.2 / (1 + np.exp(-logit)))


def drawn(logit: Floats, one: Smoothing, seed: int = 0) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(one.samples, len(logit)))
    return redshift(logit + one.sigma * NORM * noise).astype(np.float32)


def test_bounds_enclose_the_worst_case_and_are_near_it() -> None:
    logit, one = np.linspace(-2, 2, 200), Smoothing(sigma=0.5, samples=20000, confidence=0.99999)
    draws = drawn(logit, one)
    for radius in (0.2, 0.5, 1.0):
        low, high = certified_interval(draws, one, radius, BINS)
        lowest, highest = redshift(logit - radius * NORM), redshift(logit + radius * NORM)
        assert np.all(low < lowest) and np.all(highest < high)
        # The order statistic is some standard errors of a quantile beyond: of 20,000 draws at Phi(2), 0.02.
        excess = one.sigma * NORM * 0.25
        assert np.all(low > redshift(logit - radius * NORM - excess))
        assert np.all(high < redshift(logit + radius * NORM + excess))


def test_radii_are_below_the_distance_to_the_limit_and_near_it() -> None:
    one = Smoothing(sigma=0.5, samples=4000, confidence=0.999999)  # 150 certificates, none of them wrong
    rng = np.random.default_rng(1)
    z_spec = rng.uniform(0.12, 0.28, 150).astype(np.float32)
    logit = rng.normal(0, 1.5, 150)
    found = certified_radii(drawn(logit, one), z_spec, one)
    low, high = outlier_limits(z_spec)
    ends = [np.log(np.clip(z - 0.1, 1e-9, 0.2) / np.clip(0.3 - z, 1e-9, 0.2)) for z in (low, high)]
    exact = np.minimum(logit - ends[0], ends[1] - logit) / NORM  # below 0 for an outlier
    assert np.all(found.median <= np.maximum(exact, 0)) and np.all(found.vote <= np.maximum(exact, 0))
    reached = (exact > 0.1) & (exact < one.largest_radius * 0.8)
    assert reached.sum() > 30 and (exact < 0).sum() > 20
    assert np.all(found.median[reached] > exact[reached] - 0.3 * one.sigma)
    sure = exact > 3 * one.largest_radius
    np.testing.assert_allclose(found.median[sure], one.largest_radius)


@pytest.mark.parametrize("confidence", [0.9, 0.6])
def test_bounds_are_wrong_as_rarely_as_the_confidence_says(confidence: float) -> None:
    one = Smoothing(sigma=1.0, samples=100, confidence=confidence)
    draws = drawn(np.zeros(20000), one, seed=2)
    low, high = certified_interval(draws, one, 0.7, BINS)
    wrong = (low > redshift(np.array(-0.7 * NORM))) | (high < redshift(np.array(0.7 * NORM)))
    limit = (1 - confidence) + 4 * np.sqrt(confidence * (1 - confidence) / 20000)
    # Not much rarer either: counts are whole numbers, and at 100 draws a rank is worth a third of alpha.
    assert 0.3 * (1 - confidence) < wrong.mean() <= limit
    # The same for radii: of z_spec = 0.155 the upper limit is 0.21275, and <z> is never below the lower one.
    exact = np.log(0.11275 / 0.08725) / NORM
    radii = certified_radii(draws, np.full(20000, 0.155, np.float32), one)
    for found in (radii.median, radii.vote):
        assert 0.2 * (1 - confidence) < (found > exact).mean() <= limit


def test_what_is_not_known_or_not_sampled_is_not_certified() -> None:
    one = Smoothing(sigma=1.0, samples=20)
    draws = drawn(np.zeros(3), one)
    low, high = certified_interval(draws, one, 3.0, BINS)
    assert low.tolist() == [0.0] * 3 and high.tolist() == pytest.approx([0.4] * 3)
    z_spec = np.array([np.nan, 0.05, 0.2], np.float32)
    found = certified_radii(draws, z_spec, one)
    assert np.isnan(found.median[0]) and found.median[1] == found.vote[1] == 0
    outlier, surely = judged(draws, z_spec, 0.01)
    assert outlier.tolist() == [False, True, False] and surely.tolist() == [False, True, False]
    for wrong in ({"sigma": 0.0}, {"samples": 3}, {"confidence": 1.0}, {"samples": 11, "confidence": 0.9999}):
        with pytest.raises(BadInput):
            Smoothing(**{"sigma": 1.0, **wrong})  # type: ignore[arg-type]
