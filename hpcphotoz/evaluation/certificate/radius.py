"""Certificates from redshifts of noisy copies: intervals of the smoothed redshift, and radii.

Units: images are divided by the sky sigma of their object and band. A radius R is the L2 norm of a change
over all pixels and bands in these units, and sigma is the noise in each pixel.

Median smoothing (Chiang et al. 2020, arXiv:2007.03700): the median of <z> over noisy copies of any image
within R lies between the quantiles Phi(-R / sigma) and Phi(R / sigma) of <z> over noisy copies of the clean
image. Majority vote (Cohen et al. 2019, arXiv:1902.02918): if <z> is within the outlier limits with
probability p, it still is for most noisy copies of any image within sigma Phi^-1(p).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.certificate.binomial import lower_bound, lower_order, upper_bound
from hpcphotoz.evaluation.certificate.smoothing import NORMAL, Smoothing
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Radii:
    """Certified radii of N objects, in sky sigmas; NaN where z_spec is unknown, 0: none."""

    median: npt.NDArray[np.float64]  # (N,) within which the smoothed redshift is no outlier
    vote: npt.NDArray[np.float64]  # (N,) within which most noisy copies are no outliers


def outlier_limits(z_spec: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lowest and highest redshift that is no outlier, (N,) each."""
    z = z_spec.astype(np.float64)
    return z - metrics.OUTLIER * (1 + z), z + metrics.OUTLIER * (1 + z)


def certified_interval(
    draws: Floats, smoothing: Smoothing, radius: float, bins: RedshiftBins
) -> tuple[Floats, Floats]:
    """Bounds of the smoothed redshift under any change within a radius, (N,) each.

    Each pair holds with the confidence of the smoothing, for one object and one radius. Where no order
    statistic is a bound, it is an end of the bins.

    Args:
        draws: (n, N), <z> of noisy copies of the clean images.
        smoothing: sigma and confidence.
        radius: sky sigmas, L2 norm over all pixels and bands.
        bins: of the PDFs.
    """
    n = len(draws)
    k = lower_order(n, NORMAL.cdf(-radius / smoothing.sigma), smoothing.alpha / 2)
    if k == 0:
        ends = np.full((2, draws.shape[1]), [[bins.z_min], [bins.z_max]], np.float32)
        return ends[0], ends[1]
    ordered = np.partition(draws, (k - 1, n - k), axis=0)
    return ordered[k - 1], ordered[n - k]


def certified_radii(draws: Floats, z_spec: Floats, smoothing: Smoothing) -> Radii:
    """Radii within which no change makes the smoothed redshift an outlier.

    The radius of the median is the largest one at which both bounds of the median are within the limits. It
    follows from the numbers of draws below the upper and above the lower limit, so that no radius is chosen
    after the fact: both bounds hold together with the confidence of the smoothing.

    Args:
        draws, smoothing: as `certified_interval`.
        z_spec: (N,) NaN: unknown.
    """
    n, alpha = len(draws), smoothing.alpha
    low, high = outlier_limits(z_spec)
    not_low, not_high = (draws >= low).sum(axis=0), (draws <= high).sum(axis=0)
    inside = ((draws >= low) & (draws <= high)).sum(axis=0)
    median = [
        _radius(lower_bound(int(min(a, b)), n, alpha / 2), smoothing)
        for a, b in zip(not_low, not_high, strict=True)
    ]
    vote = [_radius(lower_bound(int(k), n, alpha), smoothing) for k in inside]
    unknown = np.isnan(z_spec)
    return Radii(np.where(unknown, np.nan, median), np.where(unknown, np.nan, vote))


def judged(
    draws: Floats, z_spec: Floats, alpha: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether smoothed redshifts are outliers, (N,) each: by the draws' majority, and beyond doubt.

    Args:
        draws: (n, N), <z> of noisy copies of the images that are judged.
        z_spec: (N,); NaN: no outlier in either sense.
        alpha: probability that "beyond doubt" is wrong, for one object.
    """
    n = len(draws)
    low, high = outlier_limits(z_spec)
    beyond = np.maximum((draws < low).sum(axis=0), (draws > high).sum(axis=0))
    # An outlier beyond doubt: the probability of being inside one of the limits is below 1/2.
    sure = np.array([upper_bound(int(n - k), n, alpha / 2) < 0.5 for k in beyond], bool)
    return beyond > n / 2, sure


def _radius(probability: float, smoothing: Smoothing) -> float:
    return smoothing.sigma * NORMAL.inv_cdf(probability) if 0.5 < probability < 1 else 0.0
