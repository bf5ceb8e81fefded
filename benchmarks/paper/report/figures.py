"""Figures of the page, as PNG bytes, from the results."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.paper.plan import ADVERSARIAL, INCEPTION, ROBUST_INCEPTION, STANDARD, Adversaries, point_name
from benchmarks.paper.results import Results
from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.report.figure import COLOURS, figure_png, legend_below

_CURVES = {
    STANDARD: ("CNN, standard", COLOURS[0]),
    INCEPTION: ("Inception, standard", COLOURS[4]),
    ADVERSARIAL: ("CNN, adversarial", COLOURS[1]),
    ROBUST_INCEPTION: ("Inception, adversarial", COLOURS[2]),
}
_AXES = {
    "fraction": "fraction of each batch attacked in training",
    "eps": "$\\epsilon$ in training (sky sigmas)",
    "steps": "K, attack steps in training",
}
_SKY = "#666666"


def curves(results: Results, key: str, label: str, factor: float, suffix: str = "") -> bytes | None:
    """A metric against epsilon for each network and attack; None: nothing has been measured.

    Args:
        results: of the program.
        key: of the metric; its absolute value is drawn.
        label: of the axis, with the unit.
        factor: of the metric in that unit.
        suffix: of the networks' names.
    """
    eps = [0.0, *results.plan["eps"]]
    drawn = [name for name in _CURVES if results.attacked(name + suffix, "pgd", eps[-1]) is not None]
    if not drawn:
        return None

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        for name in drawn:
            title, shade = _CURVES[name]
            fill = shade if name in (INCEPTION, ROBUST_INCEPTION) else "white"  # not by colour alone
            ax.plot([], [], color=shade, lw=3, marker="o", ms=8, mfc=fill, label=title)
            for method in ("fgsm", "pgd", "apgd"):
                means = [results.attacked(name + suffix, method, e, key) for e in eps]
                found = [(e, mean) for e, mean in zip(eps, means, strict=True) if mean is not None]
                y = [factor * abs(mean.value) for _, mean in found]
                error = [factor * (mean.error or 0.0) for _, mean in found]
                look = {**METHODS[method].curve, "mfc": fill}
                ax.plot([e for e, _ in found], y, color=shade, clip_on=False, **look)
                if method == "apgd":
                    ax.errorbar([e for e, _ in found], y, error, fmt="none", ecolor=shade, capsize=3)
        for method in ("fgsm", "pgd", "apgd"):
            ax.plot([], [], color="black", label=METHODS[method].label, **METHODS[method].curve)
        if key in ("sigma_mad", "eta"):
            _draw_neighbours(ax, results, eps, key, factor, suffix)
        ax.set_xscale("symlog", linthresh=eps[1], linscale=0.5)
        ax.set_xticks(eps, [f"{one:g}" for one in eps])
        ax.set_xticks([], minor=True)
        ax.set(xlabel="$\\epsilon$ of the attack (sky sigmas per pixel)", ylabel=label)
        ax.set_xlim(0, 1.08 * eps[-1])
        ax.set_ylim(0, None)
        legend_below(figure, ax)

    return figure_png(draw, 6.4, 5.0)


def _draw_neighbours(
    ax: Any, results: Results, eps: list[float], key: str, factor: float, suffix: str
) -> None:
    found = None if suffix else results.found("neighbours")
    if found is None:
        return
    y = [factor * found["attacked"][f"{e:g}"][key] for e in eps]
    label = "kNN, APGD on the CNN"
    ax.plot(eps, y, color=_SKY, ls="--", marker="^", ms=5, clip_on=False, label=label)


def trade_off(results: Results) -> bytes | None:
    """Clean and attacked sigma_MAD along each axis of the surface; None: nothing has been measured."""
    headline, centre = results.plan["headline"], Adversaries(**results.plan["centre"])
    axes: Mapping[str, list[float]] = dict(zip(_AXES, results.plan["axes"], strict=True))
    panels = {}
    for axis, values in axes.items():
        names = {
            value: point_name(Adversaries(**{**vars(centre), axis: value})) if value else STANDARD
            for value in ([0.0] if axis == "fraction" else []) + list(values)
        }
        names = {v: ADVERSARIAL if name == point_name(centre) else name for v, name in names.items()}
        pairs = [(v, results.clean(n), results.attacked(n, "apgd", headline)) for v, n in names.items()]
        panels[axis] = [(v, a, b) for v, a, b in pairs if a is not None and b is not None]
    if not any(panels.values()):
        return None

    def draw(figure: Any) -> None:
        each = figure.subplots(1, len(panels), sharey=True)
        for ax, (axis, points) in zip(each, panels.items(), strict=True):
            x = [point[0] for point in points]
            for place, (label, shade, look) in enumerate(
                (("clean", COLOURS[1], "o-"), (f"APGD, {headline:g} sky sigma", COLOURS[0], "s--"))
            ):
                means = [(clean, attacked)[place] for _, clean, attacked in points]
                error = [mean.error or 0.0 for mean in means]
                y = [mean.value for mean in means]
                ax.errorbar(x, y, error, fmt=look, color=shade, capsize=3, label=label)
            ax.set(xlabel=_AXES[axis], yscale="log")
            ax.set_xticks(x, [f"{one:g}" for one in x], fontsize="small")
        every = [mean.value for points in panels.values() for point in points for mean in point[1:]]
        ticks = _ticks(min(every), max(every))
        each[0].set_ylim(ticks[0], ticks[-1])
        each[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        each[0].set_yticks([], minor=True)
        each[0].set_ylabel("$\\sigma_{MAD}$ of $\\Delta z/(1+z)$")
        legend_below(figure, each[0])

    return figure_png(draw, 10.5, 4.0)


def transfer(results: Results) -> bytes | None:
    """sigma_MAD of each network on images made against each; None: transfer has not been measured."""
    if results.found("transfer") is None:
        return None
    names = results.networks("main")
    values = np.full((len(names), len(names)), np.nan)
    for i, source in enumerate(names):
        for j, target in enumerate(names):
            if (mean := results.transfer(source, target)) is not None:
                values[i, j] = mean.value

    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    ticks = _ticks(low, high)

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        picture = ax.imshow(values, cmap="cividis", norm="log", vmin=ticks[0], vmax=ticks[-1], aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                light = picture.norm(value) < 0.5
                text = f"{value:.3f}"
                ax.text(j, i, text, ha="center", va="center", color="white" if light else "black")
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_yticks(range(len(names)), names)
        ax.grid(False)
        ax.set(xlabel="network that predicts", ylabel="network that the images were made against")
        bar = figure.colorbar(picture, ax=ax, label="$\\sigma_{MAD}$ of $\\Delta z/(1+z)$", shrink=0.8)
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        bar.minorticks_off()

    return figure_png(draw, 7.6, 5.4)


def _ticks(low: float, high: float) -> list[float]:
    """The numbers 1, 1.5, 2, 3, 5 and 7 times powers of ten that enclose two numbers above 0."""
    steps = [digit * 10.0**power for power in range(-5, 2) for digit in (1, 1.5, 2, 3, 5, 7)]
    first = max(place for place, step in enumerate(steps) if step <= low)
    last = min(place for place, step in enumerate(steps) if step >= high)
    return steps[first : last + 1]


def all_figures(results: Results) -> dict[str, bytes]:
    """The figures that can be drawn, by file name without its ending."""
    metrics = {
        "sigma-mad": ("sigma_mad", "$\\sigma_{MAD}$ of $\\Delta z/(1+z)$", 1.0),
        "outliers": ("eta", "$\\eta$: |$\\Delta z/(1+z)$| > 0.05 (% of galaxies)", 100.0),
        "bias": ("bias", "|bias|: |mean $\\Delta z/(1+z)$|", 1.0),
    }
    drawings = {name: partial(curves, results, *how) for name, how in metrics.items()}
    drawings |= {f"{name}-sky": partial(curves, results, *how, "-sky") for name, how in metrics.items()}
    drawings |= {"transfer": partial(transfer, results), "trade-off": partial(trade_off, results)}
    found = {name: draw() for name, draw in drawings.items()}
    return {name: png for name, png in found.items() if png is not None}
