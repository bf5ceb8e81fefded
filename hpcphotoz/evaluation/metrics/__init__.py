"""Metrics of photometric redshifts and of their PDFs, in numpy alone.

Formulas, conventions and papers: docs/explanation/metrics.md.
"""

from hpcphotoz.evaluation.metrics.calibration import (
    LEVELS,
    central_level,
    coverage,
    pit_ad,
    pit_cvm,
    pit_histogram,
    pit_ks,
)
from hpcphotoz.evaluation.metrics.combined import summary
from hpcphotoz.evaluation.metrics.pdf import brier, cde_loss, crps, hpd_level, pdf_scores, pit
from hpcphotoz.evaluation.metrics.point import (
    FAR_OUTLIER,
    NMAD,
    OUTLIER,
    bias,
    eta,
    rail_bias,
    rail_outlier_rate,
    rail_sigma_iqr,
    residuals,
    sigma_mad,
)

__all__ = [
    "FAR_OUTLIER",
    "LEVELS",
    "NMAD",
    "OUTLIER",
    "bias",
    "brier",
    "cde_loss",
    "central_level",
    "coverage",
    "crps",
    "eta",
    "hpd_level",
    "pdf_scores",
    "pit",
    "pit_ad",
    "pit_cvm",
    "pit_histogram",
    "pit_ks",
    "rail_bias",
    "rail_outlier_rate",
    "rail_sigma_iqr",
    "residuals",
    "sigma_mad",
    "summary",
]
