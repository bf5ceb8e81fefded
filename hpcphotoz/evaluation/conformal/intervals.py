"""Conformal intervals: quantiles of PDFs, widened until they hold the redshift as often as they say.

Split-conformal quantile regression (Romano, Patterson & Candes 2019, arXiv:1905.03222): on a calibration
set, the score of an object is how far its redshift lies outside the PDF's interval, negative inside it. The
interval of a new object is widened on both sides by a quantile of the scores. If calibration objects and new
ones are exchangeable, it holds the redshift with at least the nominal probability, whatever the PDFs are. An
attack on the new objects breaks that assumption.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf

Floats = npt.NDArray[np.float64]
LEVELS = (0.68, 0.9, 0.95)


def central_interval(pdf: RedshiftPdf) -> Floats:
    """Central intervals of PDFs at each of `LEVELS`: lower and upper ends, (2, levels, N)."""
    levels = np.array(LEVELS)
    ends = pdf.quantiles(np.concatenate([(1 - levels) / 2, (1 + levels) / 2]))
    return np.asarray(ends.T.reshape(2, len(levels), len(pdf)))


@dataclass(frozen=True)
class Calibration:
    """What a calibration set says about the intervals of one network.

    Attributes:
        widening: (levels,) what is added to both ends, in redshift; negative where intervals are too wide,
            infinite where there are too few objects for the level.
        n: number of calibration objects.
    """

    widening: Floats
    n: int

    def interval(self, central: Floats, z_min: float, z_max: float) -> Floats:
        """Conformal intervals (2, levels, N) of central ones, within the bins; an empty one has its middle.

        Args:
            central: (2, levels, N), of `central_interval`.
            z_min, z_max: ends of the bins, which hold every redshift.
        """
        low, high = central[0] - self.widening[:, None], central[1] + self.widening[:, None]
        crossed, middle = low > high, (central[0] + central[1]) / 2
        found = np.stack([np.where(crossed, middle, low), np.where(crossed, middle, high)])
        return np.asarray(np.clip(found, z_min, z_max))


def calibrate(central: Floats, z_spec: npt.NDArray[np.float32]) -> Calibration:
    """Find how much intervals have to be widened.

    Args:
        central: (2, levels, n), of `central_interval`, for calibration objects.
        z_spec: (n,) finite.
    """
    z = z_spec.astype(np.float64)
    scores = np.sort(np.maximum(central[0] - z, z - central[1]), axis=1)
    n = len(z)
    widening = []
    for row, level in zip(scores, LEVELS, strict=True):
        rank = math.ceil((n + 1) * level - 1e-9)  # of the score; the new object is one of n + 1
        widening.append(row[rank - 1] if rank <= n else np.inf)
    return Calibration(np.array(widening), n)


def coverage(interval: Floats, z_spec: npt.NDArray[np.float32]) -> Floats:
    """Fraction of the objects whose redshift is in the interval, ends included, (levels,)."""
    z = z_spec.astype(np.float64)
    return np.asarray(((interval[0] <= z) & (z <= interval[1])).mean(axis=1))


def mean_width(interval: Floats) -> Floats:
    """Mean width in redshift, (levels,)."""
    return np.asarray((interval[1] - interval[0]).mean(axis=1))
