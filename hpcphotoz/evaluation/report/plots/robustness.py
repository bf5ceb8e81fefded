"""Plots of metrics against epsilon: all networks under one attack, and all attacks on one network."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.report.figure import (
    colour,
    epsilon_axis,
    figure_png,
    legend_below,
    line_look,
    text_of,
)
from hpcphotoz.evaluation.report.plots.redshifts import Plot
from hpcphotoz.evaluation.result import ConditionResult, EvaluationResult

_PANELS = {  # key of the metric -> label of the axis, factor
    "sigma_mad": ("$\\sigma_{MAD}$ of $\\Delta z/(1+z)$", 1.0),
    "eta": ("$\\eta$: outliers (%)", 100.0),
    "bias": ("|mean $\\Delta z/(1+z)$|", 1.0),
}
_WIDTH, _HEIGHT = 4.6, 2.0  # inches of a panel


def networks_under_each_attack(result: EvaluationResult, baseline: Mapping[str, Any] | None) -> list[Plot]:
    """Scatter, outliers and bias against epsilon of all networks, one picture a method, on the same axes."""
    return [_under(method, result, baseline) for method in result.methods]


def attacks_on_each_network(result: EvaluationResult) -> list[Plot]:
    """Scatter and outliers against epsilon under all attacks, one picture a network, on the same axes."""
    return [_on(network.name, result) for network in result.networks]


def _under(method: str, result: EvaluationResult, baseline: Mapping[str, Any] | None) -> Plot:
    label = METHODS[method].label

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(_PANELS), 1, sharex=True)
        for ax, key in zip(axes, _PANELS, strict=True):
            for network in result.networks:
                look = {**line_look(result, network.name), "ms": 5, "label": text_of(network.name)}
                _curve(ax, network.curve(method), key, look)
            if baseline:
                y = abs(baseline[key]) * _PANELS[key][1]
                ax.axhline(y, color="#666666", lw=1.2, ls=(0, (1, 1)), label="kNN on colours, clean")
                error = baseline["errors"][key] * _PANELS[key][1]
                ax.axhspan(y - error, y + error, color="#666666", alpha=0.15, lw=0)
        _finish(figure, axes, result, label)

    alt = f"sigma_MAD, outliers and absolute bias against epsilon under {label}. {_ends(result, [method])}"
    return Plot(label, alt, figure_png(draw, _WIDTH, 0.6 + len(_PANELS) * _HEIGHT))


def _on(name: str, result: EvaluationResult) -> Plot:
    network = next(one for one in result.networks if one.name == name)
    keys = ("sigma_mad", "eta")

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(keys), 1, sharex=True)
        for ax, key in zip(axes, keys, strict=True):
            for method in result.methods:
                look = {"color": colour(result, name), "label": METHODS[method].label}
                _curve(ax, network.curve(method), key, {**look, **METHODS[method].curve})
        _finish(figure, axes, result, name)

    alt = f"sigma_MAD and outliers of {name} against epsilon under every attack. "
    ends = _ends(result, result.methods, name)
    return Plot(name, alt + ends, figure_png(draw, _WIDTH, 0.8 + len(keys) * 1.2 * _HEIGHT))


def _curve(ax: Any, conditions: Sequence[ConditionResult], key: str, look: Mapping[str, Any]) -> None:
    factor = _PANELS[key][1]
    y = [abs(c.metrics[key]) * factor for c in conditions]
    errors = [c.errors.get(key, 0.0) * factor for c in conditions]
    x = [c.eps for c in conditions]
    ax.errorbar(x, y, errors, fmt="none", ecolor=look["color"], elinewidth=1, capsize=2)
    ax.plot(x, y, clip_on=False, **look)
    ax.set_ylabel(_PANELS[key][0])


def _finish(figure: Any, axes: Any, result: EvaluationResult, title: str) -> None:
    for ax, key in zip(axes, _PANELS, strict=False):
        conditions = [c for network in result.networks for c in network.conditions]
        values = [abs(c.metrics[key]) + c.errors.get(key, 0.0) for c in conditions]
        ax.set_ylim(0, 1.08 * max(values) * _PANELS[key][1] or 1)
        epsilon_axis(ax, result)
        ax.label_outer()
    axes[0].set_title(text_of(title))
    legend_below(figure, axes[0])


def _ends(result: EvaluationResult, methods: Sequence[str], name: str = "") -> str:
    """Sentence with sigma_MAD and eta at the headline epsilon."""
    networks = [one for one in result.networks if name in ("", one.name)]
    texts = []
    for network in networks:
        for method in methods:
            m = network.at(method, result.headline_eps).metrics
            who = METHODS[method].label if name else network.name
            texts.append(f"{m['sigma_mad']:.4f} and {100 * m['eta']:.1f} % ({who})")
    return f"At {result.headline_eps:g} sky sigma sigma_MAD and outliers are {', '.join(texts)}."
