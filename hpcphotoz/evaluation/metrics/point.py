"""Metrics of point estimates: residuals, bias, scatter and outliers, and RAIL's conventions of them."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

NMAD = 1.4826  # turns a median absolute deviation into the sigma of a Gaussian
OUTLIER = 0.05  # |dz| beyond which a redshift is an outlier, as in papers on SDSS
FAR_OUTLIER = 0.15  # the same in papers on deeper surveys
RAIL_IQR = 1.349  # interquartile range of a Gaussian in sigmas, as RAIL rounds it
RAIL_OUTLIER = 0.06  # least |dz| of RAIL's outliers


def residuals(z_phot: Array, z_spec: Array) -> Floats:
    """dz = (z_phot - z_spec) / (1 + z_spec).

    Args:
        z_phot, z_spec: (N,) redshifts, finite, N >= 1.

    Raises:
        ValueError: different shapes, no object, a redshift that is not finite, or z_spec at most -1.
    """
    phot, spec = np.asarray(z_phot, np.float64), np.asarray(z_spec, np.float64)
    if phot.ndim != 1 or phot.shape != spec.shape:
        raise ValueError(f"z_phot of shape {phot.shape} and z_spec of shape {spec.shape}: need equal (N,)")
    if len(phot) == 0:
        raise ValueError("no object to measure")
    if not (np.isfinite(phot).all() and np.isfinite(spec).all() and (spec > -1).all()):
        raise ValueError("redshifts must be finite, and z_spec above -1")
    return (phot - spec) / (1 + spec)


def bias(dz: Array) -> float:
    """Mean of dz; RAIL takes the median instead, see `rail_bias`."""
    return float(np.mean(_one_dimensional(dz)))


def sigma_mad(dz: Array) -> float:
    """1.4826 median |dz - median(dz)|: the scatter, insensitive to outliers and to an offset."""
    dz = _one_dimensional(dz)
    return float(NMAD * np.median(np.abs(dz - np.median(dz))))


def eta(dz: Array, threshold: float = OUTLIER) -> float:
    """Fraction of objects with |dz| > threshold: the catastrophic outliers."""
    return float(np.mean(np.abs(_one_dimensional(dz)) > threshold))


def rail_bias(dz: Array) -> float:
    """Median of dz: the bias of RAIL (`point_bias`)."""
    return float(np.median(_one_dimensional(dz)))


def rail_sigma_iqr(dz: Array) -> float:
    """Interquartile range of dz / 1.349: the scatter of RAIL (`point_stats_iqr`)."""
    q25, q75 = np.percentile(_one_dimensional(dz), [25, 75])
    return float((q75 - q25) / RAIL_IQR)


def rail_outlier_rate(dz: Array) -> float:
    """Fraction of objects with |dz| > max(0.06, 3 sigma_IQR): the outliers of RAIL (`point_outlier_rate`)."""
    return eta(dz, max(RAIL_OUTLIER, 3 * rail_sigma_iqr(dz)))


def _one_dimensional(dz: Array) -> Floats:
    array = np.asarray(dz, np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"dz of shape {array.shape}: need (N,) with N >= 1")
    return array
