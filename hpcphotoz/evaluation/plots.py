"""The pictures of a report, as PNG bytes; the only module of evaluation that needs matplotlib."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.gallery import three_bands
from hpcphotoz.evaluation.metrics import OUTLIER
from hpcphotoz.evaluation.network import edges
from hpcphotoz.evaluation.result import Condition, NetworkResult, Result

try:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError:
    raise BadInput("a report needs matplotlib: pip install 'hpcphotoz[report]'") from None

Floats = npt.NDArray[Any]

# Okabe & Ito's colours, told apart with any colour vision; black is kept for the truth and the ideal.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE = "#666666"
# Where the curves coincide, the thin dashes and open circles of FGSM are seen on the wide line of PGD.
METHOD_STYLE: dict[str, dict[str, Any]] = {
    "fgsm": {"ls": "--", "lw": 1.2, "marker": "o", "ms": 8, "mfc": "none", "zorder": 4},
    "pgd": {"ls": "-", "lw": 3, "marker": "s", "ms": 4, "alpha": 0.55, "zorder": 3},
}
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10.5,
    "legend.frameon": False,
}


def colour(result: Result, name: str) -> str:
    """The colour of a network, the same in every plot."""
    names = [network.name for network in result.networks]
    return COLOURS[names.index(name) % len(COLOURS)]


def scatter(result: Result) -> bytes:
    """z_phot against z_spec: a row a network; clean, and under the last method at the headline epsilon."""
    known = np.isfinite(result.z_spec)
    rows = len(result.networks)
    shown = [n.clean for n in result.networks]
    shown += [n.at(result.methods[-1], result.headline_eps) for n in result.networks]
    top = max(float(z[known].max()) for z in (result.z_spec, *(c.z_phot for c in shown)))
    low = min(network.bins.z_min for network in result.networks)
    limits = low, low + 1.1 * (top - low)

    def draw(figure: Any) -> None:
        axes = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True)
        for pair, network in zip(axes, result.networks, strict=True):
            attacked = network.at(result.methods[-1], result.headline_eps)
            for ax, condition in zip(pair, (network.clean, attacked), strict=True):
                _scatter(ax, result.z_spec[known], condition, known, limits)
            pair[0].set_ylabel(f"{network.name}\n$z_{{phot}}$ (mean of PDF)")
        for ax in axes[-1]:
            ax.set_xlabel("$z_{spec}$")

    return _png(draw, 8.4, 3.9 * rows)


def _scatter(
    ax: Any, z_spec: Floats, condition: Condition, known: Floats, limits: tuple[float, float]
) -> None:
    lo, hi = limits
    z_phot = condition.z_phot[known]
    if len(z_spec) > 3000:
        ax.hist2d(z_spec, z_phot, bins=120, range=[[lo, hi]] * 2, norm=LogNorm(), cmap="viridis")
    else:
        ax.plot(z_spec, z_phot, ".", ms=5, alpha=0.6, color="#0072B2", mec="none")
    line = np.array([lo, hi])
    ax.plot(line, line, color="black", lw=1)
    for sign in (-1, 1):
        ax.plot(line, line + sign * OUTLIER * (1 + line), color="black", lw=0.8, ls=":")
    m = condition.metrics
    text = f"$\\sigma_{{MAD}}$ {m['sigma_mad']:.4f}, $\\eta$ {100 * m['eta']:.1f} %, bias {m['bias']:+.4f}"
    ax.set(xlim=(lo, hi), ylim=(lo, hi), aspect="equal", title=f"{_condition(condition)}\n{text}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))


def curves(result: Result, baseline: Mapping[str, float] | None) -> bytes:
    """Scatter, outliers and bias against epsilon: a colour a network, a line style a method."""
    panels = (
        ("sigma_mad", "$\\sigma_{MAD}$ of $\\Delta z/(1+z)$", 1.0),
        ("eta", f"$\\eta$: outliers, |$\\Delta z/(1+z)$| > {OUTLIER} (%)", 100.0),
        ("bias", "|bias|: |mean $\\Delta z/(1+z)$|", 1.0),
    )

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 3)
        for ax, (key, label, factor) in zip(axes, panels, strict=True):
            for network in result.networks:
                for method in result.methods:
                    x, y = zip(
                        *((c.eps, abs(c.metrics[key]) * factor) for c in network.curve(method)), strict=True
                    )
                    name = f"{network.name}, {method.upper()}"
                    look = {"color": colour(result, network.name), **METHOD_STYLE[method]}
                    ax.plot(x, y, label=name, clip_on=False, **look)
            if baseline:
                y0 = abs(baseline[key]) * factor
                ax.axhline(y0, color=BASELINE, lw=1.2, ls=":", label="kNN on colours, clean")
            _epsilon_axis(ax, result)
            ax.set_ylabel(label)
            _from_zero(ax)
        _legend_below(figure, axes[0])

    return _png(draw, 11.5, 4.3)


def shifts(result: Result) -> bytes:
    """Change of <z> against epsilon, median and 90th percentile; needs no z_spec."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(result.methods), squeeze=False, sharey=True)[0]
        for ax, method in zip(axes, result.methods, strict=True):
            for network in result.networks:
                eps, median, p90 = zip(*network.shift_curve(method), strict=True)
                shade = colour(result, network.name)
                look: dict[str, Any] = {"color": shade, "ms": 4, "clip_on": False, "zorder": 3}
                ax.plot(eps, median, "s-", label=f"{network.name}, median galaxy", **look)
                ax.plot(eps, p90, "^--", label=f"{network.name}, 90th percentile", **look)
            _epsilon_axis(ax, result)
            ax.set_title(method.upper())
        _from_zero(*axes)
        axes[0].set_ylabel("|change of <z>| (redshift)")
        _legend_below(figure, axes[0])

    return _png(draw, 4.4 * len(result.methods), 4.0)


def pits(result: Result) -> bytes:
    """PIT histograms: a panel a network; clean and attacked."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(result.networks), squeeze=False, sharey=True)[0]
        for ax, network in zip(axes, result.networks, strict=True):
            attacked = network.at(result.methods[-1], result.headline_eps)
            for condition, kind in ((network.clean, "stepfilled"), (attacked, "step")):
                pit = condition.pit[np.isfinite(condition.pit)]
                look = {"color": "#9DB9D3"} if kind == "stepfilled" else {"color": "#D55E00", "lw": 1.8}
                label = _condition(condition)
                ax.hist(pit, 20, range=(0, 1), density=True, histtype=kind, label=label, **look)
            ax.axhline(1, color="black", lw=1, ls=":", label="calibrated")
            ax.set(title=network.name, xlabel="PIT = CDF($z_{spec}$)", xlim=(0, 1))
        axes[0].set_ylabel("density of galaxies")
        _legend_below(figure, axes[0])

    return _png(draw, max(4.6, 4.2 * len(result.networks)), 4.0)


def galaxy(result: Result, name: str) -> bytes:
    """One galaxy, its perturbation in every band, the attacked galaxy, and both PDFs, for one network."""
    example, bands = result.example, result.header.bands
    attacked = example.attacked[name]
    sigmas = (attacked - example.image) / example.sky_sigma[:, None, None]
    side = result.header.stamp * result.header.pixel_scale / 2
    extent = (-side, side, -side, side)
    network = next(one for one in result.networks if one.name == name)

    def draw(figure: Any) -> None:
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.15, 0.85, 1))
        before, after = top.subplots(1, 2)
        for ax, image, title in ((before, example.image, "galaxy"), (after, attacked, "attacked galaxy")):
            ax.imshow(rgb(image, example.image, bands), origin="lower", extent=extent)
            ax.set(title=title, xlabel="arcsec", ylabel="arcsec")
            ax.grid(False)
        panels = middle.subplots(1, len(bands), squeeze=False, sharey=True)[0]
        limit = max(result.headline_eps, 1e-6)
        for ax, band, delta in zip(panels, bands, sigmas, strict=True):
            picture = ax.imshow(delta, origin="lower", extent=extent, vmin=-limit, vmax=limit, cmap="RdBu_r")
            ax.set(title=f"perturbation, {band}", xticks=[], yticks=[])
            ax.grid(False)
        middle.colorbar(picture, ax=list(panels), label="sky sigmas", shrink=0.8, pad=0.01)
        _pdfs(bottom.subplots(), result, network)

    return _png(draw, 9.2, 9.4)


def _pdfs(ax: Any, result: Result, network: NetworkResult) -> None:
    example, e = result.example, edges(network.bins)
    clean, attacked = example.pdf_clean[network.name], example.pdf_attacked[network.name]
    ax.stairs(clean / network.bins.width, e, fill=True, color="#9DB9D3", label="PDF of the galaxy")
    ax.stairs(attacked / network.bins.width, e, color="#D55E00", lw=1.8, label="PDF of the attacked galaxy")
    if np.isfinite(example.z_spec):
        ax.axvline(
            example.z_spec, color="black", lw=1.3, ls="--", label=f"$z_{{spec}}$ = {example.z_spec:.4f}"
        )
    ax.set(xlabel="redshift", ylabel="probability density", xlim=(e[0], e[-1]), ylim=(0, None))
    ax.legend()


def rgb(image: Floats, scale: Floats, bands: tuple[str, ...]) -> Floats:
    """A colour picture of nMgy images, (H, W, 3) on [0, 1], by an asinh stretch of the mean of three bands.

    The ratio of the bands in a pixel, and so its colour, survives the stretch (Lupton et al. 2004,
    doi:10.1086/382245).

    Args:
        image: (B, H, W) nMgy.
        scale: (B, H, W) nMgy, the image that sets the stretch: the same for pictures to be compared.
        bands: names; `three_bands` says which are red, green and blue.
    """
    three = three_bands(bands)

    def balanced(x: Floats) -> Floats:
        # Blue is raised and red lowered so that a typical galaxy (g - i about 1) comes out neutral.
        return np.asarray(x[three] * np.array([0.65, 1.0, 1.7])[:, None, None], np.float64)

    channels, reference = balanced(image), balanced(scale).mean(axis=0)
    floor = np.median(reference)
    noise = max(float(np.median(np.abs(reference - floor))) * 1.4826, 1e-12)
    top = np.arcsinh(max(float(reference.max()) - floor, 10 * noise) / (5 * noise))
    base = np.array([np.median(c) for c in balanced(scale)])[:, None, None]
    lifted = channels - base
    intensity = np.maximum(lifted.mean(axis=0), 1e-12)
    stretched = np.arcsinh(intensity / (5 * noise)) / top
    return np.asarray(np.clip(np.moveaxis(lifted * stretched / intensity, 0, 2), 0, 1))


def _condition(condition: Condition) -> str:
    if condition.eps == 0:
        return "clean"
    return f"{condition.method.upper()}, $\\epsilon$ = {condition.eps:g} sky sigma"


def _epsilon_axis(ax: Any, result: Result) -> None:
    # Linear below the smallest epsilon, so that the clean condition has its place at 0.
    ax.set_xscale("symlog", linthresh=min(result.eps), linscale=0.5)
    ticks = [0.0, *result.eps]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="$\\epsilon$ (sky sigmas per pixel)", xlim=(0, max(result.eps) * 1.08))


def _from_zero(*axes: Any) -> None:
    """Let the axes, which share their y, begin at 0 and end above the highest point."""
    y = np.concatenate([np.asarray(line.get_ydata(), float) for ax in axes for line in ax.get_lines()])
    top = float(y[np.isfinite(y)].max(initial=0))
    axes[0].set_ylim(0, 1.08 * top or 1)


def _legend_below(figure: Any, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    inches = 0.085 * max(map(len, labels)) + 0.7  # of a label of 10 points and its handle
    columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _png(draw: Any, width: float, height: float) -> bytes:
    """Draw on a figure of that many inches and return it as PNG; nothing global is touched or kept."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw(figure)
        target = io.BytesIO()
        canvas.print_png(target, metadata={"Software": "hpcphotoz"})
        figure.clear()
    return target.getvalue()
