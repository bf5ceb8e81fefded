"""The plots of a report, as PNG bytes."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.metrics import OUTLIER
from hpcphotoz.evaluation.report.figure import (
    colour,
    condition_title,
    epsilon_axis,
    figure_png,
    legend_below,
    start_y_at_zero,
)
from hpcphotoz.evaluation.report.pictures.rgb import rgb_image
from hpcphotoz.evaluation.result import ConditionResult, EvaluationResult, NetworkResult

Floats = npt.NDArray[Any]

BASELINE = "#666666"
_PANEL = (4.6, 4.3)  # inches of a picture of which a page shows several, side by side where there is room


def redshift_scatter(result: EvaluationResult) -> list[bytes]:
    """z_phot against z_spec: clean and under the headline attack for each network, a picture each."""
    known = np.isfinite(result.z_spec)
    rows = [(n, (n.clean, n.at(result.headline_method, result.headline_eps))) for n in result.networks]
    predicted = [condition.z_phot for _, pair in rows for condition in pair]
    top = max(float(z[known].max()) for z in (result.z_spec, *predicted))
    low = min(network.bins.z_min for network in result.networks)
    limits = low, low + 1.1 * (top - low)

    def draw(figure: Any, name: str, condition: ConditionResult) -> None:
        ax = figure.subplots()
        _scatter(ax, result.z_spec[known], condition, known, limits)
        ax.set(xlabel="$z_{spec}$", ylabel=f"{name}\n$z_{{phot}}$ (mean of PDF)")

    return [
        figure_png(partial(draw, name=network.name, condition=condition), *_PANEL)
        for network, pair in rows
        for condition in pair
    ]


def _scatter(
    ax: Any, z_spec: Floats, condition: ConditionResult, known: Floats, limits: tuple[float, float]
) -> None:
    lo, hi = limits
    z_phot = condition.z_phot[known]
    if len(z_spec) > 3000:
        ax.hist2d(z_spec, z_phot, bins=120, range=[[lo, hi]] * 2, norm="log", cmap="viridis")
    else:
        size = float(np.clip(250 / math.sqrt(len(z_spec)), 6, 14))
        ax.plot(z_spec, z_phot, ".", ms=size, alpha=0.6, color="#0072B2", mec="none")
    line = np.array([lo, hi])
    ax.plot(line, line, color="black", lw=1)
    for sign in (-1, 1):
        ax.plot(line, line + sign * OUTLIER * (1 + line), color="black", lw=0.8, ls=":")
    m = condition.metrics
    text = f"$\\sigma_{{MAD}}$ {m['sigma_mad']:.4f}, $\\eta$ {100 * m['eta']:.1f} %, bias {m['bias']:+.4f}"
    ax.set(xlim=(lo, hi), ylim=(lo, hi), aspect="equal", title=f"{condition_title(condition)}\n{text}")
    ax.locator_params(nbins=5)


def robustness_curves(result: EvaluationResult, baseline: Mapping[str, float] | None) -> list[bytes]:
    """Scatter, outliers and bias against epsilon, a picture each: colours show networks, styles methods."""
    panels = (
        ("sigma_mad", "$\\sigma_{MAD}$ of $\\Delta z/(1+z)$", 1.0),
        ("eta", f"$\\eta$: outliers, |$\\Delta z/(1+z)$| > {OUTLIER} (%)", 100.0),
        ("bias", "|bias|: |mean $\\Delta z/(1+z)$|", 1.0),
    )

    def draw(figure: Any, key: str, label: str, factor: float) -> None:
        ax = figure.subplots()
        for network in result.networks:
            shade = colour(result, network.name)
            ax.plot([], [], color=shade, lw=3, label=network.name)
            for method in result.methods:
                x, y = zip(
                    *((c.eps, abs(c.metrics[key]) * factor) for c in network.curve(method)), strict=True
                )
                ax.plot(x, y, clip_on=False, color=shade, **METHODS[method].curve)
        for method in result.methods:
            ax.plot([], [], color="black", label=METHODS[method].label, **METHODS[method].curve)
        if baseline:
            y0 = abs(baseline[key]) * factor
            ax.axhline(y0, color=BASELINE, lw=1.2, ls=":", label="kNN on colours, clean")
        epsilon_axis(ax, result)
        ax.set_ylabel(label)
        start_y_at_zero(ax)
        legend_below(figure, ax)

    return [figure_png(partial(draw, key=k, label=text, factor=f), *_PANEL) for k, text, f in panels]


def shift_curves(result: EvaluationResult) -> list[bytes]:
    """Change of <z> against epsilon, median and 90th percentile, a picture per method; needs no z_spec."""
    points = [point for n in result.networks for m in result.methods for point in n.shift_curve(m)]
    top = max(max(median, p90) for _, median, p90 in points)

    def draw(figure: Any, method: str) -> None:
        ax = figure.subplots()
        for network in result.networks:
            eps, median, p90 = zip(*network.shift_curve(method), strict=True)
            shade = colour(result, network.name)
            look: dict[str, Any] = {"color": shade, "ms": 4, "clip_on": False, "zorder": 3}
            ax.plot(eps, median, "s-", label=f"{network.name}, median galaxy", **look)
            ax.plot(eps, p90, "^--", label=f"{network.name}, 90th percentile", **look)
        epsilon_axis(ax, result)
        ax.set(title=METHODS[method].label, ylabel="|change of <z>| (redshift)", ylim=(0, 1.08 * top or 1))
        legend_below(figure, ax)

    return [figure_png(partial(draw, method=method), *_PANEL) for method in result.methods]


def pit_histograms(result: EvaluationResult) -> bytes:
    """PIT histograms, clean and attacked; one panel per network."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(result.networks), squeeze=False, sharey=True)[0]
        for ax, network in zip(axes, result.networks, strict=True):
            attacked = network.at(result.headline_method, result.headline_eps)
            for condition, kind in ((network.clean, "stepfilled"), (attacked, "step")):
                pit = condition.pit[np.isfinite(condition.pit)]
                look = {"color": "#9DB9D3"} if kind == "stepfilled" else {"color": "#D55E00", "lw": 1.8}
                label = condition_title(condition)
                ax.hist(pit, 20, range=(0, 1), density=True, histtype=kind, label=label, **look)
            ax.axhline(1, color="black", lw=1, ls=":", label="calibrated")
            ax.set(title=network.name, xlabel="PIT = CDF($z_{spec}$)", xlim=(0, 1))
        axes[0].set_ylabel("density of galaxies")
        legend_below(figure, axes[0])

    return figure_png(draw, max(4.6, 4.2 * len(result.networks)), 4.0)


def minimal_eps_curves(result: EvaluationResult) -> bytes:
    """Fraction of galaxies that an attack within epsilon makes outliers; one curve per network."""
    measured = [(n.name, n.minimal_eps) for n in result.networks if n.minimal_eps is not None]
    max_eps = max(one.max_eps for _, one in measured)
    found = np.concatenate([one.known for _, one in measured])
    low = min(found[(found > 0) & np.isfinite(found)], default=max_eps / 10) / 1.5

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        for name, one in measured:
            reached = one.known[np.isfinite(one.known)]
            percent = 100 * np.arange(len(reached) + 1) / max(len(one.known), 1)
            # Galaxies that need no attack are at the left edge; beyond the last one found the curve is flat.
            x = np.concatenate([[low], np.maximum(reached, low), [max_eps]])
            y = np.concatenate([percent, percent[-1:]])
            ax.plot(x, y, drawstyle="steps-post", color=colour(result, name), lw=1.8, label=name)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlim=(low, max_eps), ylim=(0, 100), xlabel="$\\epsilon$ (sky sigmas per pixel)")
        ax.set_ylabel(f"galaxies with |$\\Delta z/(1+z)$| > {OUTLIER} (%)")
        legend_below(figure, ax)

    return figure_png(draw, 6.4, 4.2)


def example_galaxy(result: EvaluationResult, name: str) -> bytes:
    """One galaxy, its perturbation in every band, the attacked galaxy, and both PDFs, for one network."""
    example, bands = result.example, result.header.bands
    attacked = example.attacked[name]
    sigmas = (attacked - example.image) / example.sky_sigma[:, None, None]
    # An L2 ball bounds no single pixel.
    limit = max(np.abs(sigmas).max() if result.headline_method == "l2" else result.headline_eps, 1e-6)
    side = result.header.stamp * result.header.pixel_scale / 2
    extent = (-side, side, -side, side)
    network = next(one for one in result.networks if one.name == name)

    def draw(figure: Any) -> None:
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.15, 0.85, 1))
        before, after = top.subplots(1, 2)
        for ax, image, title in ((before, example.image, "galaxy"), (after, attacked, "attacked galaxy")):
            ax.imshow(rgb_image(image, example.image, bands), origin="lower", extent=extent)
            ax.set(title=title, xlabel="arcsec", ylabel="arcsec")
            ax.grid(False)
        panels = middle.subplots(1, len(bands), squeeze=False, sharey=True)[0]
        for ax, band, delta in zip(panels, bands, sigmas, strict=True):
            picture = ax.imshow(delta, origin="lower", extent=extent, vmin=-limit, vmax=limit, cmap="RdBu_r")
            ax.set(title=f"perturbation, {band}", xticks=[], yticks=[])
            ax.grid(False)
        middle.colorbar(picture, ax=list(panels), label="sky sigmas", shrink=0.8, pad=0.01)
        _pdfs(bottom.subplots(), result, network)

    return figure_png(draw, 9.2, 9.4)


def _pdfs(ax: Any, result: EvaluationResult, network: NetworkResult) -> None:
    example, e = result.example, network.bins.edges()
    clean, attacked = example.pdf_clean[network.name], example.pdf_attacked[network.name]
    ax.stairs(clean / network.bins.width, e, fill=True, color="#9DB9D3", label="PDF of the galaxy")
    ax.stairs(attacked / network.bins.width, e, color="#D55E00", lw=1.8, label="PDF of the attacked galaxy")
    if np.isfinite(z := example.z_spec):
        ax.axvline(z, color="black", lw=1.3, ls="--", label=f"$z_{{spec}}$ = {z:.4f}")
    ax.set(xlabel="redshift", ylabel="probability density", xlim=(e[0], e[-1]), ylim=(0, None))
    ax.legend()
