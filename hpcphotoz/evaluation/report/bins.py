"""The section of a report on metrics in bins: a table and a picture for each column."""

import itertools
from collections.abc import Sequence
from typing import Any

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.report.metric_tables import metric_cell
from hpcphotoz.evaluation.report.section import ReportSection, TextTable
from hpcphotoz.evaluation.result import CLEAN, BinnedMetrics, EvaluationResult
from hpcphotoz.evaluation.scoring.measure import Measured

KEY = "bins"
_WIDE = 30  # ratio of the last edge to the first from which the axis is logarithmic
_SHOWN = (  # metric, head of the table, label of the picture, factor
    ("bias", "bias", "", 1.0),
    ("sigma_mad", "sigma_MAD", "$\\sigma_{MAD}$ of $\\Delta z/(1+z)$", 1.0),
    ("eta", "eta (%)", "$\\eta$: outliers (%)", 100.0),
)
_TEXT = (
    "Metrics in bins of redshift, magnitude, extinction, signal-to-noise ratio and other columns, clean and "
    "under METHOD at EPS sky sigma, with bootstrap errors (one standard deviation). Galaxies without z_spec, "
    "or without a value of the column, are in no bin. Magnitude and signal to noise are of an aperture on "
    "the image as observed. In the pictures filled markers are clean, open ones attacked; horizontal bars "
    "span a bin."
)


def bins_section(result: EvaluationResult) -> ReportSection | None:
    """Tables, pictures and record of the metrics in bins; None without a galaxy of known z_spec.

    `record[COLUMN]` has `meaning`, `edges` and `runs`: run -> method -> one entry a bin, with the metrics,
    their `errors` and `n`; the entry of a bin without an object is empty. The methods are `clean` and the
    headline attack.

    Raises:
        BadInput: matplotlib is not installed.
    """
    if not result.binned:
        return None
    label = METHODS[result.headline_method].label
    text = _TEXT.replace("METHOD", label).replace("EPS", f"{result.headline_eps:g}")
    return ReportSection(
        key=KEY,
        title="Metrics in bins",
        text=text,
        tables=[_table(one) for one in result.binned],
        captions=[f"In bins of {one.meaning}" for one in result.binned],
        figures={f"Metrics by {one.column}": _figure(result, one) for one in result.binned},
        alts={f"Metrics by {one.column}": _alt(one) for one in result.binned},
        record={one.column: _record(one) for one in result.binned},
    )


def _record(binned: BinnedMetrics) -> dict[str, Any]:
    return {
        "meaning": binned.meaning,
        "edges": list(binned.edges),
        "runs": {
            run: {method: [one.as_summary() for one in bins] for method, bins in by_method.items()}
            for run, by_method in binned.found.items()
        },
    }


def _table(binned: BinnedMetrics) -> TextTable:
    rows = [[binned.column, "n", "run", "attack", *(head for _, head, _, _ in _SHOWN)]]
    for k, (low, high) in enumerate(itertools.pairwise(binned.edges)):
        for run, by_method in binned.found.items():
            for method, bins in by_method.items():
                one = bins[k]
                cells = [
                    metric_cell(one, name, factor, 4 if factor == 1 else 1) for name, _, _, factor in _SHOWN
                ]
                n = f"{int(one.metrics.get('n', 0)):,}"
                rows.append([f"{_edge(low)} to {_edge(high)}", n, run, method, *cells])
    return rows


def _edge(value: float) -> str:
    """Three digits, also where the last is 0: neighbouring bins read alike."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _alt(binned: BinnedMetrics) -> str:
    """sigma_MAD of each network in the first and the last bin that has objects."""
    texts = []
    for run, by_method in binned.found.items():
        for method, bins in by_method.items():
            told = [one.metrics["sigma_mad"] for one in bins if one.metrics]
            texts.append(f"from {told[0]:.4f} to {told[-1]:.4f} ({run}, {method})")
    return f"sigma_MAD and outliers in bins of {binned.meaning}: sigma_MAD goes {', '.join(texts)}."


def _figure(result: EvaluationResult, binned: BinnedMetrics) -> bytes:
    """Scatter and outliers in the bins, with errors; filled markers are clean, open ones under the attack."""
    from hpcphotoz.evaluation.report.figure import figure_png, legend_below, line_look, text_of

    def draw(figure: Any) -> None:
        axes = figure.subplots(2, 1, sharex=True)
        for ax, (name, _, label, factor) in zip(axes, _SHOWN[1:], strict=True):
            tops = [0.0]
            for run, by_method in binned.found.items():
                for method, bins in by_method.items():
                    points = _points(binned.edges, bins, name, factor)
                    x, half, y, error = zip(*points, strict=True) if points else ((), (), (), ())
                    look = {**line_look(result, run), "ms": 5, "elinewidth": 1}
                    kind = {"label": text_of(run)} if method == CLEAN else {"mfc": "white", "lw": 1}
                    ax.errorbar(x, y, error, half, **look, **kind)
                    tops += [value + bar for value, bar in zip(y, error, strict=True)]
            ax.set(xlabel=text_of(binned.meaning), ylabel=label)
            if 0 < _WIDE * binned.edges[0] < binned.edges[-1]:
                ax.set_xscale("log")
                ax.xaxis.set_major_formatter("{x:g}")
                ax.tick_params(axis="x", which="minor", labelbottom=False)
            ax.label_outer()
            ax.set_ylim(0, 1.05 * max(tops) or 1)
        legend_below(figure, axes[0])

    return figure_png(draw, 4.6, 5.6)


def _points(
    edges: Sequence[float], bins: Sequence[Measured], name: str, factor: float
) -> list[tuple[float, float, float, float]]:
    """Middle and half width of each bin that has objects, a metric and its error."""
    return [
        ((low + high) / 2, (high - low) / 2, factor * one.metrics[name], factor * one.errors[name])
        for (low, high), one in zip(itertools.pairwise(edges), bins, strict=True)
        if one.metrics
    ]
