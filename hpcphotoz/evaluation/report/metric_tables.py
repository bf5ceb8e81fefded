"""Tables of metrics with bootstrap errors: of all conventions, and of the calibration of PDFs."""

from collections.abc import Iterator

from hpcphotoz.evaluation.metrics import LEVELS
from hpcphotoz.evaluation.result import ConditionResult, EvaluationResult

_CONVENTIONS = {  # key of the metric -> head, factor, digits
    "bias": ("bias", 1.0, 4),
    "sigma_mad": ("sigma_MAD", 1.0, 4),
    "eta": ("eta (%)", 100.0, 1),
    "eta_15": ("beyond 0.15 (%)", 100.0, 1),
    "rail_bias": ("RAIL bias", 1.0, 4),
    "rail_sigma_iqr": ("RAIL sigma_IQR", 1.0, 4),
    "rail_outlier_rate": ("RAIL outliers (%)", 100.0, 1),
    "crps": ("CRPS", 1.0, 4),
    "cde_loss": ("CDE loss", 1.0, 2),
    "brier": ("Brier", 1.0, 4),
}
_STATISTICS = {"pit_ks": ("KS", 1.0, 4), "pit_cvm": ("CvM", 1.0, 3), "pit_ad": ("AD", 1.0, 2)}


def convention_rows(result: EvaluationResult) -> list[list[str]]:
    """Metrics with errors, clean and at the headline epsilon, its head first."""
    rows = [["run", "attack", *(head for head, _, _ in _CONVENTIONS.values())]]
    for name, condition in _shown(result):
        rows.append([name, condition.method, *(_cell(condition, key) for key in _CONVENTIONS)])
    return rows


def calibration_rows(result: EvaluationResult) -> list[list[str]]:
    """Statistics of the PIT, and coverage of central and highest-density intervals, its head first."""
    heads = [head for head, _, _ in _STATISTICS.values()]
    rows = [["run", "attack", *heads, *(f"in {100 * at:.0f} % (%)" for at in LEVELS)]]
    for name, condition in _shown(result):
        cells = [_cell(condition, key) for key in _STATISTICS]
        for at in LEVELS:
            found = (condition.metrics[f"{kind}_{round(100 * at)}"] for kind in ("coverage", "hpd_coverage"))
            cells.append(" / ".join(f"{100 * fraction:.1f}" for fraction in found))
        rows.append([name, condition.method, *cells])
    return rows


def _shown(result: EvaluationResult) -> Iterator[tuple[str, ConditionResult]]:
    """The conditions of known z_spec: of each network clean, then each method at the headline epsilon."""
    for network in result.networks:
        attacked = (network.at(method, result.headline_eps) for method in result.methods)
        yield from ((network.name, one) for one in (network.clean, *attacked) if one.metrics)


def _cell(condition: ConditionResult, key: str) -> str:
    _, factor, digits = {**_CONVENTIONS, **_STATISTICS}[key]
    value, error = factor * condition.metrics[key], factor * condition.errors[key]
    return f"{value:.{digits}f} ± {error:.{digits}f}"
