"""Exact confidence bounds of binomial counts, and what they say about order statistics. Needs no scipy."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def at_least(n: int, p: float) -> Floats:
    """P(K >= k) of a binomial K of n trials with probability p, for k = 0 ... n + 1, (n + 2,)."""
    if p <= 0 or p >= 1:
        return np.concatenate([np.ones(1 if p <= 0 else n + 1), np.zeros(n + 1 if p <= 0 else 1)])
    k = np.arange(n + 1)
    log_choose = _log_factorials(n)[n] - _log_factorials(n)[k] - _log_factorials(n)[n - k]
    mass = np.exp(log_choose + k * np.log(p) + (n - k) * np.log1p(-p))
    tail = np.cumsum(mass[::-1])[::-1]  # from the small terms on
    return np.append(np.minimum(tail, 1), 0.0)


@lru_cache(maxsize=1 << 16)
def lower_bound(successes: int, n: int, alpha: float) -> float:
    """The probability below which `successes` of n trials or more have a probability below alpha.

    With confidence 1 - alpha the true probability is not lower (Clopper & Pearson 1934,
    doi:10.1093/biomet/26.4.404).

    Args:
        successes: 0 to n.
        n: number of trials, at least 1.
        alpha: probability of a wrong bound, between 0 and 1.
    """
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / n
    for _ in range(60):
        middle = (low + high) / 2
        if at_least(n, middle)[successes] < alpha:
            low = middle
        else:
            high = middle
    return low


def upper_bound(successes: int, n: int, alpha: float) -> float:
    """The probability above which `successes` or fewer have a probability below alpha; see `lower_bound`."""
    return 1 - lower_bound(n - successes, n, alpha)


def lower_order(n: int, p: float, alpha: float) -> int:
    """Rank k of the order statistic of n draws that is at most the p-quantile with confidence 1 - alpha.

    The k-th smallest draw exceeds the quantile only if fewer than k draws are at most the quantile. k is the
    largest rank for which that has at most the probability alpha; 0: there is none (Chiang et al. 2020,
    arXiv:2007.03700, section 3). The (n + 1 - k)-th smallest is at least the (1 - p)-quantile likewise.
    """
    fewer = 1 - at_least(n, p)[:-1]  # P(K < k), k = 0 ... n
    return int(np.flatnonzero(fewer <= alpha)[-1])


def highest_count(n: int, p: float, alpha: float) -> int:
    """The smallest count that n trials of probability p exceed with at most the probability alpha."""
    return int(np.flatnonzero(at_least(n, p)[1:] <= alpha)[0])


@lru_cache(maxsize=8)
def _log_factorials(n: int) -> Floats:
    return np.concatenate([np.zeros(1), np.cumsum(np.log(np.arange(1, n + 1)))])
