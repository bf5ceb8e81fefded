"""Scores of redshift PDFs, one value per object.

A PDF is a probability per bin; the density is constant inside a bin, so that the CDF is linear there and the
scores below are exact rather than sums over a grid.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def pit(pdf: Array, edges: Array, z_spec: Array) -> Floats:
    """CDF(z_spec), probability integral transform: uniform on [0, 1] where PDFs are calibrated (Dawid 1984).

    Args:
        pdf: (N, n) probability per bin; each row sums to 1.
        edges: (n + 1,) increasing bin edges (redshift).
        z_spec: (N,) redshifts; 0 below the first edge, 1 above the last.

    Raises:
        ValueError: inconsistent shapes, or rows that are not PDFs.
    """
    return _pit(_located(pdf, edges, z_spec))


def crps(pdf: Array, edges: Array, z_spec: Array) -> Floats:
    """Continuous ranked probability score, integral (CDF(z) - H(z - z_spec))^2 dz.

    One value per object, in redshift; a PDF that is a spike at z gives |z - z_spec|; smaller is better
    (Gneiting & Raftery 2007, doi:10.1198/016214506000001437).

    Arguments and errors as `pit`; a z_spec outside the edges adds its distance from them.
    """
    return _crps(_located(pdf, edges, z_spec))


def cde_loss(pdf: Array, edges: Array, z_spec: Array) -> Floats:
    """Conditional density loss, integral p^2 dz - 2 p(z_spec), one value per object (Izbicki & Lee 2017).

    Its mean differs from the density's mean squared error by a constant; smaller is better, often negative.
    Arguments and errors as `pit`; p is 0 outside the edges.
    """
    return _cde_loss(_located(pdf, edges, z_spec))


def brier(pdf: Array, edges: Array, z_spec: Array) -> Floats:
    """Brier score, sum over bins (p_k - 1[z_spec in bin k])^2, one value per object (Brier 1950).

    It is from 0 to 2; smaller is better. It does not know that a neighbouring bin is nearly right, and
    depends on the bins: compare it only between PDFs on the same bins. Arguments and errors as `pit`; a
    z_spec outside the edges is an outcome to which the PDF gave no probability: 1 + sum p_k^2.
    """
    return _brier(_located(pdf, edges, z_spec))


def hpd_level(pdf: Array, edges: Array, z_spec: Array) -> Floats:
    """Probability of the smallest highest-density region that holds z_spec, one value per object.

    Regions grow from the densest bin down, inside a bin and among bins of equal density from low redshift to
    high. Uniform on [0, 1] where PDFs are calibrated; arguments and errors as `pit`; 1 outside the edges.
    """
    return _hpd_level(_located(pdf, edges, z_spec))


def pdf_scores(pdf: Array, edges: Array, z_spec: Array) -> dict[str, Floats]:
    """All scores above by the names that `summary` takes; arguments and errors as `pit`."""
    at = _located(pdf, edges, z_spec)
    return {
        "pit": _pit(at),
        "crps": _crps(at),
        "cde": _cde_loss(at),
        "brier": _brier(at),
        "hpd": _hpd_level(at),
    }


@dataclass(frozen=True)
class _Located:
    """PDFs, and where each z_spec lies in its own."""

    pdf: Floats  # (N, n), each row sums to 1
    edges: Floats  # (n + 1,)
    z: Floats  # (N,)
    cdf: Floats  # (N, n + 1), at the edges
    bin: npt.NDArray[np.intp]  # (N,) the bin that holds z, the nearest if none does
    place: Floats  # (N,) of z in its bin, from 0 to 1

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """(N,) whether z is inside the edges."""
        return np.asarray((self.z >= self.edges[0]) & (self.z <= self.edges[-1]))

    def of_bin(self, values: Floats) -> Floats:
        """(N,) the values (N, n or n + 1) of the bin that holds z."""
        return np.asarray(values[np.arange(len(self.z)), self.bin])


def _located(pdf: Array, edges: Array, z_spec: Array) -> _Located:
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
    p = p / p.sum(axis=1, keepdims=True)
    cdf = np.concatenate([np.zeros((len(p), 1)), np.cumsum(p, axis=1)], axis=1)
    k = np.clip(np.searchsorted(e, z, side="right") - 1, 0, len(e) - 2)
    return _Located(p, e, z, cdf, k, np.clip((z - e[k]) / np.diff(e)[k], 0, 1))


def _pit(at: _Located) -> Floats:
    # A sum of many probabilities can be 1 + 2e-16.
    return np.minimum(at.of_bin(at.cdf) + at.place * at.of_bin(at.pdf), 1.0)


def _crps(at: _Located) -> Floats:
    cdf, e, k, t = at.cdf, at.edges, at.bin, at.place
    width, rows = np.diff(e), np.arange(len(at.z))
    at_z = _pit(at)
    below = _square(cdf[:, :-1], cdf[:, 1:]) * width  # F^2 over whole bins
    above = _square(1 - cdf[:, :-1], 1 - cdf[:, 1:]) * width
    bins = np.arange(at.pdf.shape[1])
    whole = np.where(bins < k[:, None], below, 0).sum(1) + np.where(bins > k[:, None], above, 0).sum(1)
    split = _square(cdf[rows, k], at_z) * t + _square(1 - at_z, 1 - cdf[rows, k + 1]) * (1 - t)
    outside = np.maximum(e[0] - at.z, 0) + np.maximum(at.z - e[-1], 0)
    return np.asarray(whole + split * width[k] + outside)


def _cde_loss(at: _Located) -> Floats:
    density = at.pdf / np.diff(at.edges)
    return np.asarray((density * at.pdf).sum(1) - 2 * at.of_bin(density) * at.inside)


def _brier(at: _Located) -> Floats:
    return np.asarray((at.pdf**2).sum(1) + 1 - 2 * at.of_bin(at.pdf) * at.inside)


def _hpd_level(at: _Located) -> Floats:
    density = at.pdf / np.diff(at.edges)
    own = at.of_bin(density)[:, None]
    before = np.arange(density.shape[1]) < at.bin[:, None]
    region = (density > own) | ((density == own) & before)
    level = np.where(region, at.pdf, 0).sum(1) + at.place * at.of_bin(at.pdf)
    return np.where(at.inside, np.minimum(level, 1), 1.0)


def _square(a: Floats, b: Floats) -> Floats:
    """Mean square, over an interval, of a function that is linear from a to b."""
    return np.asarray((a * a + a * b + b * b) / 3)
