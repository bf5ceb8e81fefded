"""Tables of metrics with bootstrap errors: of all conventions, and of the calibration of PDFs."""

from collections.abc import Iterator, Mapping
from typing import Any

from hpcphotoz.evaluation.metrics import LEVELS
from hpcphotoz.evaluation.report.summary import BASELINE_NAME
from hpcphotoz.evaluation.result import CLEAN, ConditionResult, EvaluationResult
from hpcphotoz.evaluation.scoring.measure import Measured

_Baseline = Mapping[str, Any] | None  # metrics of `knn_colours` with their `errors`; None: there are none

# Tables that fit the page: key of the metric -> head, factor, digits.
_CONVENTIONS: tuple[dict[str, tuple[str, float, int]], ...] = (
    {
        "bias": ("bias", 1.0, 4),
        "sigma_mad": ("sigma_MAD", 1.0, 4),
        "eta": ("eta (%)", 100.0, 1),
        "eta_15": ("beyond 0.15 (%)", 100.0, 1),
    },
    {
        "rail_bias": ("RAIL bias", 1.0, 4),
        "rail_sigma_iqr": ("RAIL sigma_IQR", 1.0, 4),
        "rail_outlier_rate": ("RAIL outliers (%)", 100.0, 1),
    },
    {"crps": ("CRPS", 1.0, 4), "cde_loss": ("CDE loss", 1.0, 2), "brier": ("Brier", 1.0, 4)},
)
_STATISTICS = {"pit_ks": ("KS", 1.0, 4), "pit_cvm": ("CvM", 1.0, 3), "pit_ad": ("AD", 1.0, 2)}


def metric_cell(of: ConditionResult | Measured, key: str, factor: float = 1.0, digits: int = 4) -> str:
    """A metric with its error, such as "0.0123 ± 0.0004"; "-" without an object."""
    if not of.metrics:
        return "-"
    return f"{factor * of.metrics[key]:.{digits}f} ± {factor * of.errors[key]:.{digits}f}"


def convention_tables(result: EvaluationResult, baseline: _Baseline = None) -> list[list[list[str]]]:
    """Metrics with errors, clean and at the headline epsilon: our own, RAIL's, and scores of PDFs."""
    return [_rows(result, baseline, shown) for shown in _CONVENTIONS]


def calibration_tables(result: EvaluationResult, baseline: _Baseline = None) -> list[list[list[str]]]:
    """Statistics of the PIT with errors, and coverage of central / highest-density intervals."""
    coverage = [["run", "attack", *(f"{100 * at:.0f} %" for at in LEVELS)]]
    for name, method, one in _shown(result, baseline):
        cells = []
        for at in LEVELS:
            found = (one.metrics[f"{kind}_{round(100 * at)}"] for kind in ("coverage", "hpd_coverage"))
            cells.append(" / ".join(f"{100 * fraction:.1f}" for fraction in found))
        coverage.append([name, method, *cells])
    return [_rows(result, baseline, _STATISTICS), coverage]


def _rows(
    result: EvaluationResult, baseline: _Baseline, shown: dict[str, tuple[str, float, int]]
) -> list[list[str]]:
    rows = [["run", "attack", *(head for head, _, _ in shown.values())]]
    for name, method, one in _shown(result, baseline):
        cells = [metric_cell(one, key, factor, digits) for key, (_, factor, digits) in shown.items()]
        rows.append([name, method, *cells])
    return rows


def _shown(
    result: EvaluationResult, baseline: _Baseline
) -> Iterator[tuple[str, str, ConditionResult | Measured]]:
    """The conditions of known z_spec: of each network clean, then each method at the headline epsilon."""
    for network in result.networks:
        attacked = (network.at(method, result.headline_eps) for method in result.methods)
        yield from ((network.name, one.method, one) for one in (network.clean, *attacked) if one.metrics)
    if baseline:
        yield BASELINE_NAME, CLEAN, Measured(dict(baseline), baseline["errors"])
