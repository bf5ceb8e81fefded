"""Metrics of the PDFs in a file of `hpcphotoz predict`."""

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation import metrics


def score(path: Path) -> dict[str, float]:
    """Metrics of a qp file of histograms: `metrics.summary` of <z>, and `pit_ks`.

    Args:
        path: HDF5 file with the redshifts in `ancil/z_spec`.
    """
    with h5py.File(path, "r") as file:
        edges = file["meta/bins"][0]
        pdf = file["data/pdfs"][:] * np.diff(edges)
        z_phot, z_spec = file["ancil/zmean"][:], file["ancil/z_spec"][:]
    scores = metrics.crps(pdf, edges, z_spec), metrics.cde_loss(pdf, edges, z_spec)
    figures = metrics.summary(z_phot, z_spec, *scores)
    return {**figures, "pit_ks": distance_from_uniform(metrics.pit(pdf, edges, z_spec))}


def distance_from_uniform(pit: npt.NDArray[np.float64]) -> float:
    """Kolmogorov-Smirnov statistic of (N,) PITs: greatest |F(x) - x| of their distribution F."""
    x, n = np.sort(pit), len(pit)
    return float(np.maximum(np.arange(1, n + 1) / n - x, x - np.arange(n) / n).max())
