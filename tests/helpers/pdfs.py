"""Redshift PDFs: random ones, with redshifts drawn from them, and normal distributions."""

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
EDGES = np.linspace(0.0, 0.4, 181)


def random_pdfs(n: int, bins: int = 180, seed: int = 0) -> Floats:
    """(n, bins) probability per bin, with many small and few large ones."""
    raw = np.random.default_rng(seed).gamma(0.3, size=(n, bins))
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def drawn_from(pdf: Floats, rng: np.random.Generator) -> Floats:
    """A redshift of each PDF on `EDGES`, (N,)."""
    held = (rng.random((len(pdf), 1)) < np.cumsum(pdf, axis=1)).argmax(axis=1)
    return np.asarray(EDGES[held] + rng.random(len(pdf)) * EDGES[1])


def gaussians(mean: Floats, sigma: float, edges: Floats) -> Floats:
    """PDFs (N, bins) of normal distributions of these means (N,)."""
    pdf = np.diff(stats.norm.cdf(edges, mean[:, None], sigma), axis=1)
    return np.asarray(pdf / pdf.sum(axis=1, keepdims=True))
