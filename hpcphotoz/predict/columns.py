"""The columns beside the PDFs: labels of the dataset, point estimates, and a flag of robustness."""

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float64]

ANCIL = {
    "object_id": np.int64,
    "zmode": np.float64,  # centre of the most probable bin
    "zmean": np.float64,
    "zmedian": np.float64,  # where the CDF is 1/2
    "z_lower": np.float64,  # where the CDF is 0.16
    "z_upper": np.float64,  # where it is 0.84: with z_lower, the central interval of 68 %
    "sigma": np.float64,  # standard deviation of the PDF, in redshift
    "ra": np.float64,  # deg
    "dec": np.float64,  # deg
    "ebv": np.float64,  # mag
    "z_spec": np.float64,  # NaN: unknown
    "id": np.int64,  # object_id and z_spec again, under the names that RAIL's estimators give
    "redshift": np.float64,
}
FLAG = {
    "minimal_eps": np.float32,  # sky sigmas; infinite: none found up to the threshold
    "fragile": np.uint8,  # 1: `minimal_eps` is finite
}
UNITS = {"ra": "deg", "dec": "deg", "ebv": "mag"}  # of a table of points; redshifts have none
INTERVAL = 0.16, 0.84  # quantiles of z_lower and z_upper


def point_estimates(pdf: Floats, bins: RedshiftBins) -> dict[str, Floats]:
    """`zmode`, `zmean`, `zmedian`, `z_lower`, `z_upper` and `sigma` of PDFs, each (N,).

    `sigma` is the standard deviation, sqrt(<z^2> - <z>^2), of the density that is constant within a bin.

    Args:
        pdf: (N, n) probability per bin, rows that sum to 1.
        bins: the redshift bins.
    """
    found = RedshiftPdf(pdf, bins)
    edges = bins.edges()
    centres = (edges[1:] + edges[:-1]) / 2
    offset = centres - found.mean[:, None]  # the difference of two means of squares would lose digits
    variance = (found.pdf * offset**2).sum(axis=1) + bins.width**2 / 12
    lower, upper = found.quantiles(INTERVAL).T
    return {
        "zmode": found.mode,
        "zmean": found.mean,
        "zmedian": found.median,
        "z_lower": lower,
        "z_upper": upper,
        "sigma": np.sqrt(variance),
    }
