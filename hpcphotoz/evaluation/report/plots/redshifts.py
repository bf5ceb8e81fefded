"""The plots of a report: redshifts, calibration, minimal epsilons, change of the redshift."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.metrics import OUTLIER
from hpcphotoz.evaluation.report.figure import (
    condition_title,
    epsilon_axis,
    figure_png,
    legend_below,
    line_look,
    text_of,
)
from hpcphotoz.evaluation.result import ConditionResult, EvaluationResult

Floats = npt.NDArray[Any]

# Inches of a picture of which a page shows several, side by side where there is room. On a telephone, its
# text is nearly as large as that of the page.
PANEL = (4.6, 4.3)


class Plot(NamedTuple):
    """A picture with its name and with what is to be seen in it."""

    name: str
    alt: str
    png: bytes


def redshift_scatter(result: EvaluationResult) -> list[Plot]:
    """z_phot against z_spec: clean and under the headline attack for each network, a picture each."""
    rows = [(n, (n.clean, n.at(result.headline_method, result.headline_eps))) for n in result.networks]

    def draw(figure: Any, name: str, condition: ConditionResult) -> None:
        ax = figure.subplots()
        _scatter(ax, condition)
        ax.set(xlabel="$z_{spec}$", ylabel=f"{text_of(name)}\n$z_{{phot}}$ (mean of PDF)")

    def plot(name: str, condition: ConditionResult) -> Plot:
        m = condition.metrics
        alt = (
            f"z_phot of {name} against z_spec of {m['n']} galaxies, {condition_text(condition)}: they "
            f"scatter about the diagonal with sigma_MAD {m['sigma_mad']:.4f} and bias {m['bias']:+.4f}, and "
            f"{100 * m['eta']:.1f} % are beyond the outlier limits."
        )
        png = figure_png(partial(draw, name=name, condition=condition), *PANEL)
        return Plot(f"{name} {condition_text(condition)}", alt, png)

    return [plot(network.name, condition) for network, pair in rows for condition in pair]


def condition_text(condition: ConditionResult) -> str:
    """Name of a condition, in plain text."""
    if condition.eps == 0:
        return "clean"
    return f"under {METHODS[condition.method].label} at {condition.eps:g} sky sigma"


def _scatter(ax: Any, condition: ConditionResult) -> None:
    scatter = condition.scatter
    assert scatter is not None  # the clean condition and the headline attack have one
    lo, hi = scatter.limits
    if scatter.is_histogram:
        edges = np.linspace(lo, hi, len(scatter.counts) + 1)
        seen = np.ma.masked_equal(scatter.counts.T, 0)
        mesh = ax.pcolormesh(edges, edges, seen, norm="log", cmap="viridis", rasterized=True)
        ax.figure.colorbar(mesh, ax=ax, label="galaxies", shrink=0.8, pad=0.02)
    else:
        size = float(np.clip(250 / math.sqrt(len(scatter.z_spec)), 6, 14))
        ax.plot(scatter.z_spec, scatter.z_phot, ".", ms=size, alpha=0.6, color="#0072B2", mec="none")
    line = np.array([lo, hi])
    ax.plot(line, line, color="black", lw=1)
    for sign in (-1, 1):
        ax.plot(line, line + sign * OUTLIER * (1 + line), color="black", lw=0.8, ls=":")
    m = condition.metrics
    text = f"$\\sigma_{{MAD}}$ {m['sigma_mad']:.4f}, $\\eta$ {100 * m['eta']:.1f} %, bias {m['bias']:+.4f}"
    ax.set(xlim=(lo, hi), ylim=(lo, hi), aspect="equal", title=f"{condition_title(condition)}\n{text}")
    ax.locator_params(nbins=5)


def shift_curves(result: EvaluationResult) -> list[Plot]:
    """Change of <z> against epsilon, median and 90th percentile, a picture per method; needs no z_spec."""
    points = [point for n in result.networks for m in result.methods for point in n.shift_curve(m)]
    top = max(max(median, p90) for _, median, p90 in points)

    def draw(figure: Any, method: str) -> None:
        ax = figure.subplots()
        for network in result.networks:
            eps, median, p90 = zip(*network.shift_curve(method), strict=True)
            look = {**line_look(result, network.name), "ms": 5, "clip_on": False, "zorder": 3}
            ax.plot(eps, median, label=text_of(network.name), **look)
            ax.plot(eps, p90, **look, mfc="white", lw=1)
        epsilon_axis(ax, result)
        ax.set(title=METHODS[method].label, ylabel="|change of <z>| (redshift)", ylim=(0, 1.08 * top or 1))
        legend_below(figure, ax)

    def plot(method: str) -> Plot:
        label, eps = METHODS[method].label, max(result.eps)
        ends = ((n.name, n.at(method, eps)) for n in result.networks)
        texts = (f"{c.shift_median:.4f} and {c.shift_p90:.4f} for {name}" for name, c in ends)
        alt = f"Change of <z> against epsilon under {label}. At {eps:g} sky sigma the median and 90th "
        alt += f"percentile are {', '.join(texts)}."
        return Plot(label, alt, figure_png(partial(draw, method=method), *PANEL))

    return [plot(method) for method in result.methods]


def pit_histograms(result: EvaluationResult) -> list[Plot]:
    """PIT histograms, clean and attacked, a picture per network; all have the same height of axis."""
    bins = len(result.networks[0].clean.pit_histogram)

    def conditions(name: str) -> list[tuple[ConditionResult, Floats]]:
        network = next(one for one in result.networks if one.name == name)
        attacked = network.at(result.headline_method, result.headline_eps)
        return [(c, c.pit_histogram * bins / c.pit_histogram.sum()) for c in (network.clean, attacked)]

    heights = {network.name: conditions(network.name) for network in result.networks}
    top = max(float(height.max()) for pair in heights.values() for _, height in pair)

    def draw(figure: Any, name: str) -> None:
        ax = figure.subplots()
        looks: tuple[dict[str, Any], ...] = (
            {"fill": True, "color": "#9DB9D3"},
            {"color": "#D55E00", "lw": 1.8},
        )
        for (condition, height), look in zip(heights[name], looks, strict=True):
            ax.stairs(height, np.linspace(0, 1, bins + 1), label=condition_title(condition), **look)
        ax.axhline(1, color="black", lw=1, ls=":", label="calibrated")
        ax.set(title=text_of(name), xlabel="PIT = CDF($z_{spec}$)", xlim=(0, 1), ylim=(0, 1.05 * top))
        ax.set_ylabel("density of galaxies")
        legend_below(figure, ax)

    def plot(name: str) -> Plot:
        texts = (
            f"{condition_text(c)} {100 * (h[0] + h[-1]) / bins:.0f} % of the galaxies"
            for c, h in heights[name]
        )
        alt = f"Histogram of the PIT of {name}, as a density of galaxies against the PIT. In the outermost "
        alt += f"two of {bins} bins are {', '.join(texts)}; "
        return Plot(
            name,
            f"{alt}calibrated PDFs have {200 / bins:.0f} % there.",
            figure_png(partial(draw, name=name), *PANEL),
        )

    return [plot(name) for name in heights]


def minimal_eps_curves(result: EvaluationResult) -> Plot:
    """Fraction of galaxies that an attack within epsilon makes outliers; one curve per network."""
    measured = [(n.name, n.minimal_eps) for n in result.networks if n.minimal_eps is not None]
    max_eps = max(one.max_eps for _, one in measured)
    found = np.concatenate([one.values for _, one in measured])
    low = min(found[(found > 0) & np.isfinite(found)], default=max_eps / 10) / 1.5

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        for name, one in measured:
            finite = np.isfinite(one.values)
            reached = one.values[finite]
            percent = 100 * np.concatenate([[0], np.cumsum(one.counts[finite])]) / max(one.n, 1)
            # Galaxies that need no attack are at the left edge; beyond the last one found the curve is flat.
            x = np.concatenate([[low], np.maximum(reached, low), [max_eps]])
            y = np.concatenate([percent, percent[-1:]])
            look = {**line_look(result, name), "marker": None}
            ax.plot(x, y, drawstyle="steps-post", lw=1.8, label=text_of(name), **look)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlim=(low, max_eps), ylim=(0, 100), xlabel="$\\epsilon$ (sky sigmas per pixel)")
        ax.set_ylabel(f"galaxies with |$\\Delta z/(1+z)$| > {OUTLIER} (%)")
        legend_below(figure, ax)

    medians = ((name, one.quantile(0.5)) for name, one in measured)
    texts = (
        f"{name} at {f'{e:.3g}' if math.isfinite(e) else f'more than {max_eps:g}'}" for name, e in medians
    )
    alt = "Percentage of outliers against epsilon in sky sigmas. Half of the galaxies are outliers for "
    alt += f"{', '.join(texts)}."
    return Plot("outliers against epsilon", alt, figure_png(draw, *PANEL))
