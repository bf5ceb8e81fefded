"""The curves of training runs as one PNG: panels against the optimiser step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import atomic_write
from hpcphotoz.evaluation.report.figure import COLOURS, figure_png

_STYLES = ("-", "--", ":")  # of the figures of a panel


@dataclass(frozen=True)
class Panel:
    """Curves of one unit: by run, by name of the figure, its points (step, value)."""

    label: str  # of the y axis, with the unit
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]


def plot_runs(panels: Sequence[Panel], resumed: Mapping[str, Sequence[int]], out: Path) -> None:
    """Draw panels below each other; colours show runs, styles figures. The file is written atomically.

    Args:
        panels: one or more, of the same runs.
        resumed: by run, the steps from which it was resumed: thin vertical lines.
        out: the file, ending in .png.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, panel in zip(axes, panels, strict=True):
            for shade, (run, curves) in zip(COLOURS, panel.curves.items(), strict=False):
                for style, (name, points) in zip(_STYLES, curves.items(), strict=False):
                    if points:
                        x, y = zip(*points, strict=True)
                        marker = "o" if len(points) < 40 else None
                        ax.plot(x, y, style, color=shade, marker=marker, ms=3, label=f"{run}: {name}")
                for step in resumed.get(run, ()):
                    ax.axvline(step, color=shade, lw=0.6, alpha=0.5)
            ax.set_ylabel(panel.label)
            if ax.get_legend_handles_labels()[0]:
                ax.legend(fontsize=8)
        axes[-1].set_xlabel("optimiser step")

    png = figure_png(draw, 7.5, 0.6 + 2.4 * len(panels))
    with atomic_write(out) as temporary:
        temporary.write_bytes(png)
