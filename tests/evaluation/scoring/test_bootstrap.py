"""Bootstrap errors of ratios of percentiles."""

import numpy as np
import pytest

from hpcphotoz.evaluation.scoring.bootstrap import RESAMPLINGS, ratio_errors


def test_the_error_of_a_ratio_of_medians_is_that_of_the_theory() -> None:
    """The median of n normal numbers scatters by 1.25 sigma / sqrt(n), their 90th percentile by 1.71."""
    rng, n = np.random.default_rng(0), 4000
    below = 1 + 0.1 * rng.standard_normal(n)
    median, p90 = ratio_errors(np.full(n, 5.0), below, (50, 90))
    # The error of 200 resamplings scatters by 5 %, and the density at the percentile by some 10 %.
    allowed = 3 / np.sqrt(2 * RESAMPLINGS) + 0.2
    assert median == pytest.approx(5 * 1.2533 * 0.1 / np.sqrt(n), rel=allowed)
    assert p90 == pytest.approx(5 / 1.128**2 * 1.709 * 0.1 / np.sqrt(n), rel=allowed)


def test_both_columns_are_of_the_same_galaxies() -> None:
    below = np.random.default_rng(1).gamma(2.0, 1.0, 500)
    together = ratio_errors(3 * below, below, (50,))
    assert together == [pytest.approx(0, abs=1e-12)]
    (apart,) = ratio_errors(3 * below[::-1], below, (50,))
    assert apart is not None and apart > 0.1


def test_a_ratio_to_nothing_has_no_error() -> None:
    still = np.zeros(50)
    still[10:] = 1.0
    assert ratio_errors(np.ones(50), still, (5, 50)) == [None, pytest.approx(0, abs=1e-12)]
