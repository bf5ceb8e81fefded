"""The plots of one galaxy: image and attacked image, perturbation, and PDFs."""

from typing import Any

import numpy as np

from hpcphotoz.evaluation.report.figure import figure_png
from hpcphotoz.evaluation.report.pictures.rgb import rgb_image
from hpcphotoz.evaluation.report.plots.redshifts import PANEL, Plot
from hpcphotoz.evaluation.result import EvaluationResult, NetworkResult

_COLUMNS = 3  # bands of a perturbation beside each other


def example_galaxy(result: EvaluationResult, name: str) -> list[Plot]:
    """One galaxy and the attacked galaxy, the perturbation in every band, and both PDFs, for one network."""
    network = next(one for one in result.networks if one.name == name)
    return [_images(result, name), _perturbation(result, name), _pdfs(result, network)]


def _images(result: EvaluationResult, name: str) -> Plot:
    example, bands = result.example, result.header.bands

    def draw(figure: Any) -> None:
        before, after = figure.subplots(1, 2, sharey=True)
        pair = ((before, example.image, "galaxy"), (after, example.attacked[name], "attacked galaxy"))
        for ax, image, title in pair:
            ax.imshow(rgb_image(image, example.image, bands), origin="lower", extent=_extent(result))
            ax.set(title=title, xlabel="arcsec")
            ax.grid(False)
        before.set_ylabel("arcsec")

    side = result.header.stamp * result.header.pixel_scale
    alt = (
        f"Images of galaxy {example.object_id} before and after the attack on {name}, {side:.3g} arcsec a "
        "side, with the same colour scale."
    )
    return Plot("images", alt, figure_png(draw, PANEL[0], 2.7))


def _perturbation(result: EvaluationResult, name: str) -> Plot:
    example, bands = result.example, result.header.bands
    sigmas = (example.attacked[name] - example.image) / example.sky_sigma[:, None, None]
    # An L2 ball bounds no single pixel.
    limit = max(np.abs(sigmas).max() if result.headline_method == "l2" else result.headline_eps, 1e-6)
    rows = -(-len(bands) // _COLUMNS)

    def draw(figure: Any) -> None:
        axes = figure.subplots(rows, min(len(bands), _COLUMNS), squeeze=False).ravel()
        for ax, band, delta in zip(axes, bands, sigmas, strict=False):
            look = {"vmin": -limit, "vmax": limit, "cmap": "RdBu_r"}
            picture = ax.imshow(delta, origin="lower", extent=_extent(result), **look)
            ax.set(title=band, xticks=[], yticks=[])
            ax.grid(False)
        for ax in axes[len(bands) :]:
            ax.set_axis_off()
        figure.colorbar(picture, ax=list(axes), label="perturbation (sky sigmas)", pad=0.02)

    rms = float(np.sqrt((sigmas**2).mean()))
    alt = (
        f"Maps of the perturbation of galaxy {example.object_id} by the attack on {name}, in "
        f"{', '.join(bands)}, with a colour scale from {-limit:.3g} to {limit:.3g} sky sigma: root mean "
        f"square {rms:.3g}, greatest {np.abs(sigmas).max():.3g} sky sigma."
    )
    return Plot("perturbation", alt, figure_png(draw, PANEL[0], 0.3 + 1.6 * rows))


def _pdfs(result: EvaluationResult, network: NetworkResult) -> Plot:
    example, e = result.example, network.bins.edges()
    clean, attacked = example.pdf_clean[network.name], example.pdf_attacked[network.name]

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        ax.stairs(clean / network.bins.width, e, fill=True, color="#9DB9D3", label="galaxy")
        ax.stairs(attacked / network.bins.width, e, color="#D55E00", lw=1.8, label="attacked galaxy")
        if np.isfinite(z := example.z_spec):
            ax.axvline(z, color="black", lw=1.3, ls="--", label=f"$z_{{spec}}$ = {z:.4f}")
        ax.set(xlabel="redshift", ylabel="probability density", xlim=(e[0], e[-1]), ylim=(0, None))
        ax.legend()

    centres = (e[:-1] + e[1:]) / 2
    before, after = float(clean @ centres), float(attacked @ centres)
    alt = (
        f"Probability density of galaxy {example.object_id} by {network.name} against redshift: its mean "
        f"is {before:.4f} before and {after:.4f} after the attack."
    )
    return Plot("PDFs", alt, figure_png(draw, PANEL[0], 3.4))


def _extent(result: EvaluationResult) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a stamp, arcsec from its centre."""
    side = result.header.stamp * result.header.pixel_scale / 2
    return (-side, side, -side, side)
