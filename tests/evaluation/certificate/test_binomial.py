"""Binomial bounds against scipy's beta distribution, and their coverage."""

import numpy as np
import pytest

from hpcphotoz.evaluation.certificate.binomial import (
    at_least,
    highest_count,
    lower_bound,
    lower_order,
    upper_bound,
)

stats = pytest.importorskip("scipy.stats", reason="needs scipy: pip install 'hpcphotoz[sources]'")


@pytest.mark.parametrize("n", [1, 10, 1000, 20000])
@pytest.mark.parametrize("alpha", [0.1, 1e-3, 1e-6])
def test_bounds_are_those_of_clopper_and_pearson(n: int, alpha: float) -> None:
    for k in sorted({0, 1, n // 3, n - 1, n}):
        lower = stats.beta.ppf(alpha, k, n - k + 1) if k else 0.0
        assert lower_bound(k, n, alpha) == pytest.approx(lower, rel=1e-8, abs=1e-14)
        upper = stats.beta.ppf(1 - alpha, k + 1, n - k) if k < n else 1.0
        assert upper_bound(k, n, alpha) == pytest.approx(upper, rel=1e-8)


@pytest.mark.parametrize("p", [0.0, 1e-4, 0.3, 0.999, 1.0])
def test_tails_are_those_of_the_binomial_distribution(p: float) -> None:
    expected = stats.binom.sf(np.arange(-1, 501), 500, p)
    np.testing.assert_allclose(at_least(500, p), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(("n", "p", "alpha"), [(50, 0.2, 0.05), (1000, 0.0228, 5e-4), (400, 0.5, 0.01)])
def test_an_order_statistic_is_the_largest_one_that_is_a_bound(n: int, p: float, alpha: float) -> None:
    k = lower_order(n, p, alpha)
    # The k-th smallest of n uniform numbers follows Beta(k, n + 1 - k); the quantile is p itself.
    assert stats.beta.sf(p, k, n + 1 - k) <= alpha < stats.beta.sf(p, k + 1, n - k)


def test_too_few_draws_have_no_bound() -> None:
    assert lower_order(20, 0.01, 0.05) == 0 and lower_bound(0, 20, 0.05) == 0.0


def test_the_highest_count_is_exceeded_as_rarely_as_asked() -> None:
    for n, p in ((1000, 0.002), (10, 0.5), (5, 0.0)):
        c = highest_count(n, p, 1e-6)
        assert stats.binom.sf(c, n, p) <= 1e-6 and (c == 0 or stats.binom.sf(c - 1, n, p) > 1e-6)
