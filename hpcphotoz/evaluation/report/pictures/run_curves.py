"""The curves of training runs as one PNG: panels against the optimiser step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import atomic_write
from hpcphotoz.evaluation.report.figure import COLOURS, figure_png, text_of

# The same in every panel: what clean images gave is dashed, what attacked ones gave is dotted.
_STYLES = {"clean": "--", "attacked": ":"}
_MARKERS = {"skipped step": "x", "loss spike": "^"}
VALIDATION = "validation sigma_MAD"  # label of the panel in which the best epoch is marked
_FROM_ZERO = ("images/s", "data wait (%)")  # labels of panels whose y axis begins at 0


@dataclass(frozen=True)
class Panel:
    """Curves of one unit: by run, by name of the figure, its points (step, value)."""

    label: str  # of the y axis, with the unit
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]


@dataclass(frozen=True)
class Steps:
    """Steps of a run at which something happened."""

    resumed: Sequence[int] = ()  # from which it was resumed: thin vertical lines
    best: int | None = None  # of the best validation: a star on each curve of the panel `VALIDATION`
    events: Mapping[str, Sequence[int]] = field(default_factory=dict)  # by name: marks in the first panel


def plot_runs(panels: Sequence[Panel], steps: Mapping[str, Steps], out: Path) -> None:
    """Draw panels below each other; colours show runs, styles figures. The file is written atomically.

    Args:
        panels: one or more, of the same runs; the legend of the first explains all lines and marks.
        steps: by run, those at which something happened.
        out: the file, ending in .png.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, panel in zip(axes, panels, strict=True):
            for shade, (run, curves) in zip(COLOURS, panel.curves.items(), strict=False):
                for name, points in curves.items():
                    if points:
                        x, y = zip(*points, strict=True)
                        style, marker = _STYLES.get(name, "-"), "o" if len(points) < 40 else None
                        ax.plot(
                            x, y, style, color=shade, marker=marker, ms=3, label=text_of(f"{run}: {name}")
                        )
                if panel.label == VALIDATION:
                    _mark_best(ax, run, curves, steps.get(run, Steps()).best, shade)
                _mark(ax, run, steps.get(run, Steps()), shade, explained=ax is axes[0])
            ax.set_ylabel(panel.label)
            if panel.label in _FROM_ZERO:
                ax.set_ylim(bottom=0)
            if ax.get_legend_handles_labels()[0]:
                ax.legend(fontsize=8)
        axes[-1].set_xlabel("optimiser step")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)

    png = figure_png(draw, 7.5, 0.6 + 2.4 * len(panels))
    with atomic_write(out) as temporary:
        temporary.write_bytes(png)


def _mark_best(
    ax: Any, run: str, curves: Mapping[str, Sequence[tuple[int, float]]], best: int | None, shade: str
) -> None:
    found = [point for points in curves.values() for point in points if point[0] == best]
    if found:
        x, y = zip(*found, strict=True)
        ax.plot(
            x, y, "*", color=shade, ms=11, mec="black", mew=0.6, zorder=3, label=text_of(f"{run}: best epoch")
        )


def _mark(ax: Any, run: str, steps: Steps, shade: str, explained: bool) -> None:
    """Draw where a run was resumed, and in the panel whose legend explains it, events at the lower edge."""
    for k, step in enumerate(steps.resumed):
        label = text_of(f"{run}: resumed") if explained and k == 0 else None
        ax.axvline(step, color=shade, lw=0.8, alpha=0.5, label=label)
    for name, at in steps.events.items() if explained else ():
        if at:
            ax.plot(
                at,
                [0] * len(at),  # on the axis, not among the values
                _MARKERS.get(name, "|"),
                color=shade,
                ms=5,
                mew=1,
                clip_on=False,
                transform=ax.get_xaxis_transform(),
                label=text_of(f"{run}: {name}"),
            )
