"""Calibration of PDFs: how far PITs are from uniform, and how often credible intervals hold z_spec."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LEVELS = (0.5, 0.68, 0.9, 0.95, 0.99)  # of the credible intervals whose coverage is quoted
EDGE = (
    2.0**-17
)  # PITs nearer than this to 0 or 1 are moved to it in Anderson-Darling, which is infinite there


def pit_histogram(pit: Array, bins: int = 20) -> Counts:
    """Number of PITs in each of `bins` equal bins of [0, 1], (bins,); 1 counts in the last.

    Raises:
        ValueError: no PIT, or one outside [0, 1].
    """
    place = (_checked(pit) * bins).astype(np.int64)
    return np.bincount(np.minimum(place, bins - 1), minlength=bins).astype(np.int64)


def pit_ks(pit: Array, counts: Array | None = None) -> Any:
    """Kolmogorov-Smirnov statistic of PITs against the uniform distribution: max |F(x) - x|.

    Args:
        pit: (N,), or with `counts` increasing values (K,).
        counts: number of PITs at each value, (..., K), for several sets at once; None: one each.

    Returns:
        A number, or one a set: (...).

    Raises:
        ValueError: no PIT, or one outside [0, 1].
    """
    x, before, after, n = _ordered(pit, counts)
    return np.maximum(after / n - x, x - before / n).max(axis=-1)


def pit_cvm(pit: Array, counts: Array | None = None) -> Any:
    """Cramer-von Mises statistic, n integral (F(x) - x)^2 dx = 1/12n + sum ((2i - 1)/2n - x_i)^2.

    Arguments, result and errors as `pit_ks`.
    """
    x, before, after, n = _ordered(pit, counts)
    c = after - before
    # Ranks i = before + 1 ... after share one x: their mean, and their variance about it.
    sums = c * ((after + before) / (2 * n) - x) ** 2 + (c**3 - c) / (12 * n**2)
    return sums.sum(axis=-1) + 1 / (12 * n[..., 0])


def pit_ad(pit: Array, counts: Array | None = None) -> Any:
    """Anderson-Darling statistic, n integral (F(x) - x)^2 / (x (1 - x)) dx, which weighs both ends.

    = -n - (1/n) sum ((2i - 1) ln x_i + (2n + 1 - 2i) ln(1 - x_i)). PITs nearer than 2^-17 to 0 or 1 are
    taken at that distance: a single one at 0 would make it infinite. Arguments and errors as `pit_ks`.
    """
    x, before, after, n = _ordered(pit, counts)
    x = np.clip(x, EDGE, 1 - EDGE)
    weight = after**2 - before**2  # sum of 2i - 1
    sums = weight * np.log(x) + (2 * n * (after - before) - weight) * np.log1p(-x)
    return -n[..., 0] - sums.sum(axis=-1) / n[..., 0]


def central_level(pit: Array) -> Floats:
    """|2 PIT - 1|: probability of the smallest central credible interval that holds z_spec, (N,)."""
    return np.abs(2 * np.asarray(pit, np.float64) - 1)


def coverage(level: Array, at: float) -> float:
    """Fraction of objects whose z_spec is in their credible interval of probability `at`.

    Calibrated PDFs give `at` itself, too narrow ones less.

    Args:
        level: (N,) smallest interval that holds z_spec: `central_level` or `hpd_level`.
        at: probability of the interval.
    """
    return float(np.mean(np.asarray(level) <= at))


def _checked(pit: Array) -> Floats:
    values = np.asarray(pit, np.float64)
    if values.ndim != 1 or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"PITs of shape {values.shape}: need (N,) from 0 to 1, N >= 1")
    return values


def _ordered(pit: Array, counts: Array | None) -> tuple[Floats, Floats, Floats, Floats]:
    """Increasing values, the number of PITs before each and up to it, and the number of all (..., 1)."""
    x = _checked(pit)
    if counts is None:
        x, number = np.sort(x), np.ones(len(x))
    else:
        number = np.asarray(counts, np.float64)
    after = np.cumsum(number, axis=-1)
    return x, after - number, after, after[..., -1:]
