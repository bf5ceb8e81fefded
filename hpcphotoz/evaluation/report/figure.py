"""Matplotlib helpers of the report's plots: figures as PNG bytes, looks of networks, the epsilon axis."""

import io
from collections.abc import Callable, Mapping
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.result import ConditionResult, EvaluationResult

try:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:
    raise BadInput("plots need matplotlib: pip install 'hpcphotoz[report]'") from None

# Okabe & Ito's colours, distinct with any colour vision; black is kept for the truth and the ideal.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Line and marker of the same networks, for print in grey.
LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (7, 2)), "v"), ((0, (1, 2)), "P"))
REPORT_STYLE: Mapping[str, Any] = {
    "figure.dpi": 160,  # sharp in print, and on screens of two pixels a CSS pixel
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10.5,
    "legend.frameon": False,
}


def colour(result: EvaluationResult, name: str) -> str:
    """The colour of a network, the same in every plot."""
    return str(line_look(result, name)["color"])


def line_look(result: EvaluationResult, name: str) -> dict[str, Any]:
    """The colour, line style and marker of a network, the same in every plot, as keywords of `plot`."""
    i = [network.name for network in result.networks].index(name)
    style, marker = LINES[
        (i + i // len(COLOURS)) % len(LINES)
    ]  # the seventh has a colour for the second time
    return {"color": COLOURS[i % len(COLOURS)], "ls": style, "marker": marker}


def text_of(name: str) -> str:
    """A name from outside, such as a run's, as a label of a picture: no part of it is taken as a formula.

    Matplotlib leaves labels that begin with an underscore out of its legends.
    """
    text = name.replace("$", "\\$")
    return f" {text}" if text.startswith("_") else text


def condition_title(condition: ConditionResult) -> str:
    """Name of a condition, for the title of a panel."""
    if condition.eps == 0:
        return "clean"
    return f"{METHODS[condition.method].label}, $\\epsilon$ = {condition.eps:g} sky sigma"


def epsilon_axis(ax: Any, result: EvaluationResult) -> None:
    """Set the x axis: logarithmic in epsilon, linear below the smallest one, so that it includes 0."""
    ax.set_xscale("symlog", linthresh=min(result.eps), linscale=0.5)
    ticks = [0.0, *result.eps]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="$\\epsilon$ (sky sigmas per pixel)", xlim=(0, max(result.eps) * 1.08))


def legend_below(figure: Any, ax: Any) -> None:
    """Add one legend for all panels, below them."""
    handles, labels = ax.get_legend_handles_labels()
    inches = 0.085 * max(map(len, labels)) + 0.7  # of a label of 10 points and its handle
    columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def figure_png(
    draw: Callable[[Any], None], width: float, height: float, style: Mapping[str, Any] = REPORT_STYLE
) -> bytes:
    """Draw a figure and return it as PNG, without pyplot and its global state.

    Args:
        draw: draws on the Matplotlib figure.
        width, height: inches.
        style: Matplotlib's rcParams.
    """
    with rc_context(dict(style)):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw(figure)
        target = io.BytesIO()
        canvas.print_png(target, metadata={"Software": "hpcphotoz"})
        figure.clear()
    return target.getvalue()
