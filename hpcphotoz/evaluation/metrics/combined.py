"""The metrics that papers quote, of one set of objects."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation.metrics.calibration import LEVELS, central_level, coverage, pit_ad, pit_cvm, pit_ks
from hpcphotoz.evaluation.metrics.point import (
    FAR_OUTLIER,
    OUTLIER,
    bias,
    eta,
    rail_bias,
    rail_outlier_rate,
    rail_sigma_iqr,
    residuals,
    sigma_mad,
)

Array = npt.NDArray[Any]


def summary(
    z_phot: Array,
    z_spec: Array,
    crps: Array | None = None,
    cde: Array | None = None,
    *,
    brier: Array | None = None,
    pit: Array | None = None,
    hpd: Array | None = None,
) -> dict[str, float]:
    """All metrics: `bias`, `sigma_mad`, `eta`, `eta_15`, RAIL's own, those of the scores given, and `n`.

    `crps`, `cde_loss` and `brier` are means. `pit` gives `pit_ks`, `pit_cvm`, `pit_ad` and `coverage_50` to
    `coverage_99`, the coverage of central credible intervals; `hpd` gives `hpd_coverage_50` to `_99`.

    Args:
        z_phot, z_spec: (N,) redshifts.
        crps, cde, brier, pit, hpd: (N,) from `pdf_scores`; None: metrics without them.

    Raises:
        ValueError: as `residuals`, or scores of another shape.
    """
    dz = residuals(z_phot, z_spec)
    given = {"crps": crps, "cde_loss": cde, "brier": brier, "pit": pit, "hpd": hpd}
    scores = {name: np.asarray(score, np.float64) for name, score in given.items() if score is not None}
    for name, score in scores.items():
        if score.shape != dz.shape:
            raise ValueError(f"{name} of shape {score.shape} for {len(dz)} objects")
    figures = {
        "bias": bias(dz),
        "sigma_mad": sigma_mad(dz),
        "eta": eta(dz, OUTLIER),
        "eta_15": eta(dz, FAR_OUTLIER),
        "rail_bias": rail_bias(dz),
        "rail_sigma_iqr": rail_sigma_iqr(dz),
        "rail_outlier_rate": rail_outlier_rate(dz),
    }
    figures |= {name: float(scores[name].mean()) for name in ("crps", "cde_loss", "brier") if name in scores}
    if "pit" in scores:
        tests = {"pit_ks": pit_ks, "pit_cvm": pit_cvm, "pit_ad": pit_ad}
        figures |= {name: float(of(scores["pit"])) for name, of in tests.items()}
        figures |= coverages("coverage", central_level(scores["pit"]))
    if "hpd" in scores:
        figures |= coverages("hpd_coverage", scores["hpd"])
    return {**figures, "n": len(dz)}


def coverages(name: str, level: Array) -> dict[str, float]:
    """Coverage at each of `LEVELS`, by names such as `coverage_50`; `level` (N,) as in `coverage`."""
    return {coverage_name(name, at): coverage(level, at) for at in LEVELS}


def coverage_name(name: str, at: float) -> str:
    """Name of a coverage, such as `coverage_50`."""
    return f"{name}_{round(100 * at)}"
