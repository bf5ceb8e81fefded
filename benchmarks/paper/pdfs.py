"""Metrics of the PDFs in a file of `hpcphotoz predict`."""

from pathlib import Path

import h5py
import numpy as np

from hpcphotoz.evaluation import metrics


def score(path: Path) -> dict[str, float]:
    """Metrics of a qp file of histograms: `metrics.summary` of <z> and the PDFs.

    Args:
        path: HDF5 file with the redshifts in `ancil/z_spec`.
    """
    with h5py.File(path, "r") as file:
        edges = file["meta/bins"][0]
        pdf = file["data/pdfs"][:] * np.diff(edges)
        z_phot, z_spec = file["ancil/zmean"][:], file["ancil/z_spec"][:]
    return metrics.summary(z_phot, z_spec, **metrics.pdf_scores(pdf, edges, z_spec))
