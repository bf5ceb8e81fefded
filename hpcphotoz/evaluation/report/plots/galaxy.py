"""The plot of one galaxy: image, perturbation, attacked image, and its PDFs."""

from typing import Any

import numpy as np

from hpcphotoz.evaluation.report.figure import figure_png
from hpcphotoz.evaluation.report.pictures.rgb import rgb_image
from hpcphotoz.evaluation.report.plots.redshifts import Plot
from hpcphotoz.evaluation.result import EvaluationResult, NetworkResult


def example_galaxy(result: EvaluationResult, name: str) -> Plot:
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

    means = [
        float((pdf[name] * network.bins.centres().numpy()).sum())
        for pdf in (example.pdf_clean, example.pdf_attacked)
    ]
    alt = (
        f"Galaxy {example.object_id} before and after the attack, which look the same; its perturbation in "
        f"{', '.join(bands)}; and its PDFs of {name}: their mean is {means[0]:.4f} before and {means[1]:.4f} "
        "after."
    )
    return Plot("image, perturbation and PDFs", alt, figure_png(draw, 9.2, 9.4))


def _pdfs(ax: Any, result: EvaluationResult, network: NetworkResult) -> None:
    example, e = result.example, network.bins.edges()
    clean, attacked = example.pdf_clean[network.name], example.pdf_attacked[network.name]
    ax.stairs(clean / network.bins.width, e, fill=True, color="#9DB9D3", label="PDF of the galaxy")
    ax.stairs(attacked / network.bins.width, e, color="#D55E00", lw=1.8, label="PDF of the attacked galaxy")
    if np.isfinite(z := example.z_spec):
        ax.axvline(z, color="black", lw=1.3, ls="--", label=f"$z_{{spec}}$ = {z:.4f}")
    ax.set(xlabel="redshift", ylabel="probability density", xlim=(e[0], e[-1]), ylim=(0, None))
    ax.legend()
