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
    attack, n = METHODS[result.headline_method].label, found[0].calibration.n
    return ReportSection(
        key=KEY,
        title="Conformal intervals",
        text=_TEXT.format(n=n, attack=attack, eps=result.headline_eps).replace("\n", " "),
        tables=[_table(found)],
        figures={"Coverage of intervals against their level": _figure(result, found)},
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
    rows = [["run", "interval", "level", "coverage, clean", "width", "coverage, attacked", "width"]]
    for one in found:
        for kind in KINDS:
            for k, level in enumerate(LEVELS):
                cells = [one.network, "PDF" if kind == "pdf" else kind, f"{100 * level:.0f} %"]
                for condition in CONDITIONS:
                    percent, error = (
                        100 * x[k] for x in (one.covered[kind, condition], one.error(kind, condition))
                    )
                    cells += [f"{percent:.1f} ± {error:.1f} %", f"{one.width[kind, condition][k]:.4f}"]
                rows.append(cells)
    return rows


def _figure(result: EvaluationResult, found: Sequence[Coverage]) -> bytes:
    from hpcphotoz.evaluation.report import figure  # a local import: all else works without matplotlib

    def draw(page: Any) -> None:
        ax = page.subplots()
        level = 100 * np.array(LEVELS)
        for one in found:
            shade = figure.colour(result, one.network)
            for condition, line in zip(CONDITIONS, ("-", "--"), strict=True):
                for kind, marker in zip(KINDS, ("x", "o"), strict=True):
                    percent = 100 * one.covered[kind, condition]
                    error = 100 * one.error(kind, condition)
                    name = f"{one.network}, {'PDF' if kind == 'pdf' else kind}, {condition}"
                    look: dict[str, Any] = {"color": shade, "ls": line, "marker": marker, "capsize": 2}
                    ax.errorbar(level, percent, error, label=name, mfc="white", **look)
        ax.plot([60, 100], [60, 100], color="black", lw=1, ls=":", label="nominal")
        ax.set(xlabel="level of the interval (%)", ylabel="galaxies whose $z_{spec}$ is in it (%)")
        ax.set(xlim=(64, 98), ylim=(0, 102))
        figure.legend_below(page, ax)

    return figure.figure_png(draw, 6.4, 5.2)
