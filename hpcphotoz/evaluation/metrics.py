"""Metrics of photometric redshifts and of their PDFs, in numpy alone.

A PDF is a probability per bin; the density is constant inside a bin, so that the CDF is linear there and the
PIT, the CRPS and the CDE loss below are exact rather than sums over a grid.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

NMAD = 1.4826  # turns a median absolute deviation into the sigma of a Gaussian
OUTLIER = 0.05  # |dz| beyond which a redshift is an outlier, as in papers on SDSS; 0.15 elsewhere


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
    """Mean of dz (RAIL takes the median instead)."""
    return float(np.mean(_one_dimensional(dz)))


def sigma_mad(dz: Array) -> float:
    """1.4826 median |dz - median(dz)|: the scatter, insensitive to outliers and to an offset."""
    dz = _one_dimensional(dz)
    return float(NMAD * np.median(np.abs(dz - np.median(dz))))


def eta(dz: Array, threshold: float = OUTLIER) -> float:
    """Fraction of objects with |dz| > threshold: the catastrophic outliers."""
    return float(np.mean(np.abs(_one_dimensional(dz)) > threshold))


def pit(pdf: Array, edges: Array, z_spec: Array) -> Floats:
    """CDF(z_spec), probability integral transform: uniform on [0, 1] where PDFs are calibrated (Dawid 1984).

    Args:
        pdf: (N, n) probability per bin; each row sums to 1.
        edges: (n + 1,) increasing bin edges (redshift).
        z_spec: (N,) redshifts; 0 below the first edge, 1 above the last.

    Raises:
        ValueError: inconsistent shapes, or rows that are not PDFs.
    """
    pdf, edges, z = _checked(pdf, edges, z_spec)
    cdf, k, t = _locate(pdf, edges, z)
    rows = np.arange(len(z))
    return np.asarray(cdf[rows, k] + t * pdf[rows, k])


def crps(pdf: Array, edges: Array, z_spec: Array) -> Floats:
    """Continuous ranked probability score, integral (CDF(z) - H(z - z_spec))^2 dz.

    One value per object, in redshift; a PDF that is a spike at z gives |z - z_spec|; smaller is better
    (Gneiting & Raftery 2007, doi:10.1198/016214506000001437).

    Arguments and errors as `pit`; a z_spec outside the edges adds its distance from them.
    """
    pdf, edges, z = _checked(pdf, edges, z_spec)
    cdf, k, t = _locate(pdf, edges, z)
    width, rows = np.diff(edges), np.arange(len(z))
    at_z = cdf[rows, k] + t * pdf[rows, k]
    below = _square(cdf[:, :-1], cdf[:, 1:]) * width  # F^2 over whole bins
    above = _square(1 - cdf[:, :-1], 1 - cdf[:, 1:]) * width
    bins = np.arange(pdf.shape[1])
    whole = np.where(bins < k[:, None], below, 0).sum(1) + np.where(bins > k[:, None], above, 0).sum(1)
    split = _square(cdf[rows, k], at_z) * t + _square(1 - at_z, 1 - cdf[rows, k + 1]) * (1 - t)
    outside = np.maximum(edges[0] - z, 0) + np.maximum(z - edges[-1], 0)
    return np.asarray(whole + split * width[k] + outside)


def cde_loss(pdf: Array, edges: Array, z_spec: Array) -> Floats:
    """Conditional density loss, integral p^2 dz - 2 p(z_spec), one value per object (Izbicki & Lee 2017).

    Its mean differs from the density's mean squared error by a constant; smaller is better, often negative.
    Arguments and errors as `pit`; p is 0 outside the edges.
    """
    pdf, edges, z = _checked(pdf, edges, z_spec)
    _, k, _ = _locate(pdf, edges, z)
    density = pdf / np.diff(edges)
    inside = (z >= edges[0]) & (z <= edges[-1])
    return np.asarray((density * pdf).sum(1) - 2 * density[np.arange(len(z)), k] * inside)


def summary(
    z_phot: Array,
    z_spec: Array,
    crps: Array | None = None,
    cde: Array | None = None,
    *,
    threshold: float = OUTLIER,
) -> dict[str, float]:
    """The metrics that papers quote: `bias`, `sigma_mad`, `eta`, `n`, and `crps`, `cde_loss` if given.

    Args:
        z_phot, z_spec: (N,) redshifts.
        crps, cde: (N,) from the functions of those names; averaged.
        threshold: |dz| beyond which an object is an outlier.

    Raises:
        ValueError: as `residuals`, or scores of another shape.
    """
    dz = residuals(z_phot, z_spec)
    figures = {"bias": bias(dz), "sigma_mad": sigma_mad(dz), "eta": eta(dz, threshold)}
    for name, score in (("crps", crps), ("cde_loss", cde)):
        if score is not None:
            if np.shape(score) != dz.shape:
                raise ValueError(f"{name} of shape {np.shape(score)} for {len(dz)} objects")
            figures[name] = float(np.mean(score))
    return {**figures, "n": len(dz)}


def _one_dimensional(dz: Array) -> Floats:
    array = np.asarray(dz, np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"dz of shape {array.shape}: need (N,) with N >= 1")
    return array


def _checked(pdf: Array, edges: Array, z_spec: Array) -> tuple[Floats, Floats, Floats]:
    p, e, z = (np.asarray(array, np.float64) for array in (pdf, edges, z_spec))
    if p.ndim != 2 or e.shape != (p.shape[1] + 1,) or z.shape != (len(p),):
        raise ValueError(f"pdf {p.shape}, edges {e.shape}, z_spec {z.shape}: need (N, n), (n + 1,), (N,)")
    if not (np.diff(e) > 0).all():
        raise ValueError("bin edges must increase")
    if not np.isfinite(z).all():
        raise ValueError("z_spec must be finite: leave out the objects without one")
    # 1e-3: a float16 softmax over 1000 bins sums to 1 within that; logits or densities miss it by far more.
    if not ((p >= 0).all() and (np.abs(p.sum(axis=1) - 1) < 1e-3).all()):
        raise ValueError("each row of pdf must be probabilities per bin that sum to 1")
    return p / p.sum(axis=1, keepdims=True), e, z


def _locate(pdf: Floats, edges: Floats, z: Floats) -> tuple[Floats, npt.NDArray[np.intp], Floats]:
    """The CDF at the edges (N, n + 1), the bin k that holds z, and the place of z in it from 0 to 1."""
    cdf = np.concatenate([np.zeros((len(pdf), 1)), np.cumsum(pdf, axis=1)], axis=1)
    k = np.clip(np.searchsorted(edges, z, side="right") - 1, 0, len(edges) - 2)
    return cdf, k, np.clip((z - edges[k]) / np.diff(edges)[k], 0, 1)


def _square(a: Floats, b: Floats) -> Floats:
    """Mean square, over an interval, of a function that is linear from a to b."""
    return np.asarray((a * a + a * b + b * b) / 3)
