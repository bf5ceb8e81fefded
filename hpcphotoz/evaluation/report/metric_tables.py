"""Tables of metrics with bootstrap errors: of all conventions, and of the calibration of PDFs."""

from collections.abc import Iterator

from hpcphotoz.evaluation.metrics import LEVELS
from hpcphotoz.evaluation.result import ConditionResult, EvaluationResult

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


def convention_tables(result: EvaluationResult) -> list[list[list[str]]]:
    """Metrics with errors, clean and at the headline epsilon: our own, RAIL's, and scores of PDFs."""
    return [_rows(result, shown) for shown in _CONVENTIONS]


def calibration_tables(result: EvaluationResult) -> list[list[list[str]]]:
    """Statistics of the PIT with errors, and coverage of central / highest-density intervals."""
    coverage = [["run", "attack", *(f"{100 * at:.0f} %" for at in LEVELS)]]
    for name, condition in _shown(result):
        cells = []
        for at in LEVELS:
            found = (condition.metrics[f"{kind}_{round(100 * at)}"] for kind in ("coverage", "hpd_coverage"))
            cells.append(" / ".join(f"{100 * fraction:.1f}" for fraction in found))
        coverage.append([name, condition.method, *cells])
    return [_rows(result, _STATISTICS), coverage]


def _rows(result: EvaluationResult, shown: dict[str, tuple[str, float, int]]) -> list[list[str]]:
    rows = [["run", "attack", *(head for head, _, _ in shown.values())]]
    for name, condition in _shown(result):
        cells = []
        for key, (_, factor, digits) in shown.items():
            value, error = factor * condition.metrics[key], factor * condition.errors[key]
            cells.append(f"{value:.{digits}f} ± {error:.{digits}f}")
        rows.append([name, condition.method, *cells])
    return rows


def _shown(result: EvaluationResult) -> Iterator[tuple[str, ConditionResult]]:
    """The conditions of known z_spec: of each network clean, then each method at the headline epsilon."""
    for network in result.networks:
        attacked = (network.at(method, result.headline_eps) for method in result.methods)
        yield from ((network.name, one) for one in (network.clean, *attacked) if one.metrics)
