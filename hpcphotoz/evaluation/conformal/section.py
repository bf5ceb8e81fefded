"""The section of a report on conformal intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.conformal.intervals import LEVELS
from hpcphotoz.evaluation.conformal.measure import CONDITIONS, KINDS, Coverage
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.result import EvaluationResult

KEY = "conformal"
_PANEL = (4.6, 4.3)  # inches
_CAPTION = "Galaxies whose z_spec is in the interval, with binomial errors, and its mean width in redshift"
_TEXT = """The fraction of the galaxies whose z_spec is in an interval, and the interval's mean width in
redshift: the PDF's own central interval, and the conformal one, which is the former widened (or narrowed) by
one amount for all galaxies, found on {n} clean calibration galaxies that are not measured. On clean images
like those of the calibration, conformal intervals hold z_spec at least as often as they say, however the PDFs
are; the proof does not hold for images that {attack} has changed by {eps:g} sky sigma, which the last columns
measure."""


def conformal_section(result: EvaluationResult, found: Sequence[Coverage]) -> ReportSection:
    """Make the section; raises BadInput where matplotlib is not installed.

    Args:
        result: of the evaluation.
        found: of its networks, from `measure_conformal`.
    """
    attack, calibration = METHODS[result.headline_method].label, found[0].calibration
    text = _TEXT.format(n=calibration.n, attack=attack, eps=result.headline_eps).replace("\n", " ")
    few = [f"{100 * at:.0f}" for at, w in zip(LEVELS, calibration.widening, strict=True) if np.isinf(w)]
    if few:
        text += (
            f" {calibration.n} are too few for {' and '.join(few)} %: that interval is the range of the bins."
        )
    return ReportSection(
        key=KEY,
        title="Conformal intervals",
        text=text,
        tables=[_table(found)],
        captions=[_CAPTION],
        figures={f"coverage {one.network}": _figure(result, one) for one in found},
        alts={f"coverage {one.network}": _alt(result, one) for one in found},
        record=conformal_record(result, found),
    )


def conformal_record(result: EvaluationResult, found: Sequence[Coverage]) -> dict[str, Any]:
    """What `metrics.json` holds: per run, level, kind of interval and condition; widths in redshift."""
    return {
        "attack": result.headline_method,
        "eps_sky_sigma": result.headline_eps,
        "levels": list(LEVELS),
        "networks": {
            one.network: {
                "n": one.n,
                "n_calibration": one.calibration.n,
                # None: too few calibration objects for the level, the interval is the range of the bins.
                "widening": [float(w) if np.isfinite(w) else None for w in one.calibration.widening],
                **{
                    kind: {
                        condition: {
                            "coverage": one.covered[kind, condition].tolist(),
                            "coverage_standard_error": one.error(kind, condition).tolist(),
                            "mean_width": one.width[kind, condition].tolist(),
                        }
                        for condition in CONDITIONS
                    }
                    for kind in KINDS
                },
            }
            for one in found
        },
    }


def _table(found: Sequence[Coverage]) -> list[list[str]]:
    rows = [["run", "interval", "level", "clean (%)", "width", "attacked (%)", "width"]]
    for one in found:
        for kind in KINDS:
            for k, level in enumerate(LEVELS):
                cells = [one.network, "PDF" if kind == "pdf" else kind, f"{100 * level:.0f} %"]
                for condition in CONDITIONS:
                    percent, error = (
                        100 * x[k] for x in (one.covered[kind, condition], one.error(kind, condition))
                    )
                    cells += [f"{percent:.1f} ± {error:.1f}", f"{one.width[kind, condition][k]:.4f}"]
                rows.append(cells)
    return rows


def _alt(result: EvaluationResult, one: Coverage) -> str:
    """The axes, and the coverage of each kind of interval, clean and attacked."""
    levels = _listed([100 * level for level in LEVELS])
    attack = f"under {METHODS[result.headline_method].label} at {result.headline_eps:g} sky sigma"
    texts = []
    for condition in CONDITIONS:
        pdf, conformal = (_listed(100 * one.covered[kind, condition]) for kind in KINDS)
        when = "on clean images" if condition == CONDITIONS[0] else attack
        texts.append(f"{when} {pdf} (the PDF's own) and {conformal} (conformal)")
    return (
        f"Percentage of the galaxies whose z_spec is in an interval of {one.network} against the interval's "
        f"level, with the diagonal of exact intervals. At the levels {levels} it is {'; '.join(texts)}."
    )


def _listed(percent: Any) -> str:
    *first, last = (f"{value:.0f}" for value in percent)
    return f"{', '.join(first)} and {last} %"


def _figure(result: EvaluationResult, one: Coverage) -> bytes:
    """Coverage against level: squares for PDFs' intervals, circles for conformal ones, open if attacked."""
    from hpcphotoz.evaluation.report import figure  # a local import: all else works without matplotlib

    def draw(page: Any) -> None:
        ax = page.subplots()
        shade = figure.colour(result, one.network)
        looks = ((KINDS[0], "PDF", "s", -0.5), (KINDS[1], "conformal", "o", 0.5))
        for condition, line, fill in zip(CONDITIONS, ("-", "--"), (shade, "white"), strict=True):
            for kind, name, marker, aside in looks:
                look: dict[str, Any] = {"color": shade, "ls": line, "marker": marker, "mfc": fill, "lw": 1.2}
                percent, error = 100 * one.covered[kind, condition], 100 * one.error(kind, condition)
                at = 100 * np.array(LEVELS) + aside  # points of the same level side by side
                ax.errorbar(at, percent, error, label=f"{name}, {condition}", ms=6, capsize=2, **look)
        ax.plot([60, 100], [60, 100], color="black", lw=1, ls=":", label="exact intervals")
        ax.set(title=figure.text_of(one.network), xlim=(64, 99), ylim=(0, 102))
        ax.set_xlabel("level of the interval (%)")
        ax.set(xticks=[100 * level for level in LEVELS], ylabel="galaxies with $z_{spec}$ in it (%)")
        figure.legend_below(page, ax)

    return figure.figure_png(draw, *_PANEL)
