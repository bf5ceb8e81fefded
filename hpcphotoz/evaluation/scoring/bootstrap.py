"""Bootstrap errors of metrics: their standard deviation over resamplings of the objects.

A resampling of objects is a multinomial draw of the counts of a histogram, whose cost and memory do not
depend on the number of objects. For means and fractions the limit of many resamplings is sigma / sqrt(n).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.metrics.point import RAIL_IQR, RAIL_OUTLIER

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESAMPLINGS = 200  # of which an error scatters by 5 %
PIT_BINS = 1 << 16  # in which PITs are counted
_BISECTIONS = 20
# Edges of the wider bins that are resampled: halved towards 0 and 1, to which Anderson-Darling is sensitive.
_END = np.concatenate([[0], 1 << np.arange(8)])
_PIT_EDGES = np.concatenate([_END, np.arange(256, PIT_BINS, 256), PIT_BINS - _END[::-1]])

# Edges of the histogram that stands for dz, in sigma_IQR from the median.
_RIGHT = np.concatenate([np.arange(0.1, 4.05, 0.1), 4 * 1.5 ** np.arange(1, 41)])
EDGES = np.concatenate([-_RIGHT[::-1], [0], _RIGHT])


def dz_cells(dz: Floats, median: Floats, sigma_iqr: Floats) -> Ints:
    """Cell of `EDGES` that holds each dz (m,), given the median and sigma_IQR of its group (m,)."""
    u = (dz - median) / np.maximum(sigma_iqr, 1e-12)
    return np.clip(np.searchsorted(EDGES, u, side="right") - 1, 0, len(EDGES) - 2)


def dz_errors(cells: Ints, median: float, sigma_iqr: float) -> dict[str, float]:
    """Errors of `sigma_mad`, `rail_bias`, `rail_sigma_iqr` and `rail_outlier_rate`.

    Args:
        cells: number of objects in each cell of `EDGES`.
        median, sigma_iqr: of dz.
    """
    n = int(cells.sum())
    drawn = np.random.default_rng(n).multinomial(n, cells / n, RESAMPLINGS)
    cdf = np.concatenate([np.zeros((RESAMPLINGS, 1)), np.cumsum(drawn, axis=1) / n], axis=1)
    q25, middle, q75 = (_inverse(cdf, q) for q in (0.25, 0.5, 0.75))
    # Half of the objects are nearer to the median than the MAD, which is at most the interquartile range.
    low, high = np.zeros(RESAMPLINGS), q75 - q25
    for _ in range(_BISECTIONS):
        t = (low + high) / 2
        enough = _at(cdf, middle + t) - _at(cdf, middle - t) >= 0.5
        low, high = np.where(enough, low, t), np.where(enough, t, high)
    iqr = (q75 - q25) / RAIL_IQR
    far = np.maximum(RAIL_OUTLIER / max(sigma_iqr, 1e-12), 3 * iqr)
    centre = median / max(sigma_iqr, 1e-12)
    found = {
        "sigma_mad": metrics.NMAD * sigma_iqr * high,
        "rail_bias": sigma_iqr * middle,
        "rail_sigma_iqr": sigma_iqr * iqr,
        "rail_outlier_rate": 1 - _at(cdf, far - centre) + _at(cdf, -far - centre),
    }
    return {name: float(np.std(values)) for name, values in found.items()}


def pit_errors(counts: Ints) -> dict[str, float]:
    """Errors of `pit_ks`, `pit_cvm` and `pit_ad`, from the counts of PITs, (PIT_BINS,)."""
    n = int(counts.sum())
    wide = np.add.reduceat(counts, _PIT_EDGES[:-1])
    drawn = np.random.default_rng(n).multinomial(n, wide / n, RESAMPLINGS)
    middle = (_PIT_EDGES[1:] + _PIT_EDGES[:-1]) / (2 * PIT_BINS)
    statistics = {"pit_ks": metrics.pit_ks, "pit_cvm": metrics.pit_cvm, "pit_ad": metrics.pit_ad}
    return {name: float(np.std(of(middle, drawn))) for name, of in statistics.items()}


def ratio_errors(above: Floats, below: Floats, percents: Sequence[float]) -> list[float | None]:
    """Errors of percentiles of one column over those of another, of the same objects, resampled together.

    Args:
        above, below: (N,) of the objects.
        percents: of the percentiles.

    Returns:
        One for each percentile; None where that of `below` is 0 in some resampling.
    """
    rng, n = np.random.default_rng(len(above)), len(above)
    found = np.empty((RESAMPLINGS, 2, len(percents)))
    for drawn in found:
        rows = rng.integers(0, n, n)
        drawn[:] = np.percentile(above[rows], percents), np.percentile(below[rows], percents)
    top, bottom = found[:, 0].T, found[:, 1].T
    return [float(np.std(a / b)) if b.all() else None for a, b in zip(top, bottom, strict=True)]


def _inverse(cdf: Floats, probability: float) -> Floats:
    """Place, in units of `EDGES`, at which each CDF (resamplings, edges) reaches a probability."""
    k = np.argmax(cdf >= probability, axis=1)
    rows = np.arange(len(cdf))
    below = cdf[rows, k - 1]
    t = (probability - below) / (cdf[rows, k] - below)
    return np.asarray(EDGES[k - 1] + t * (EDGES[k] - EDGES[k - 1]))


def _at(cdf: Floats, place: Floats) -> Floats:
    """Each CDF (resamplings, edges) at a place of its own, linear between edges."""
    k = np.clip(np.searchsorted(EDGES, place, side="right"), 1, len(EDGES) - 1)
    rows = np.arange(len(cdf))
    t = np.clip((place - EDGES[k - 1]) / (EDGES[k] - EDGES[k - 1]), 0, 1)
    return np.asarray(cdf[rows, k - 1] * (1 - t) + cdf[rows, k] * t)
