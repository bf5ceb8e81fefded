"""Pictures that notebooks show, drawn with pyplot: stamps as colour images, and redshift PDFs."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.figure import COLOURS
from hpcphotoz.evaluation.report.pictures.rgb import rgb_images, three_bands

try:
    from matplotlib import pyplot
    from matplotlib.patches import StepPatch
except ImportError:
    raise BadInput("plots need matplotlib: pip install 'hpcphotoz[report]'") from None

Floats = npt.NDArray[Any]
_COLUMNS = 8  # of a mosaic of stamps
_MAX_CURVES = 6  # PDFs drawn one by one


def plot_stamps(images: Floats, sky_sigma: Floats, z_spec: Floats, bands: tuple[str, ...]) -> Any:
    """Draw stamps as colour images, eight a row, all with the same asinh stretch; titles are redshifts.

    Args:
        images: (N, B, y, x) nMgy.
        sky_sigma: (N, B) nMgy per pixel.
        z_spec: (N,), NaN: unknown.
        bands: names; `rgb.three_bands` says which are red, green and blue.

    Returns:
        Array of axes, (rows, columns); those without a stamp are empty.

    Raises:
        BadInput: no stamp.
    """
    if len(images) == 0:
        raise BadInput("plot: no object to draw")
    columns = min(len(images), _COLUMNS)
    rows = -(-len(images) // columns)
    size = (max(1.25 * columns, 3.2), 1.45 * rows + 0.6)
    figure, axes = pyplot.subplots(rows, columns, squeeze=False, figsize=size, layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, picture, z in zip(axes.flat, rgb_images(images, sky_sigma, bands), z_spec, strict=False):
        ax.imshow(picture, origin="lower", interpolation="nearest")
        ax.set_title(f"z {z:.3f}" if np.isfinite(z) else "z ?", fontsize=8, pad=2)
    three = [bands[k] for k in three_bands(bands)]
    shades = f"red green blue = {' '.join(three)}" if len(bands) > 1 else f"grey = {three[0]}"
    figure.supxlabel(shades, fontsize=8)
    return axes


def plot_pdfs(pdf: Floats, edges: Floats, z_spec: Floats | None, label: str = "", ax: Any = None) -> Any:
    """Draw up to six PDFs as curves, more as their mean; redshifts are dotted lines, or a histogram.

    Args:
        pdf: (N, n) probability per bin.
        edges: (n + 1,) redshift.
        z_spec: (N,) to compare with, NaN: unknown; None: nothing.
        label: first word of the legend's entries.
        ax: axes to draw on; None: new ones.

    Returns:
        The axes.

    Raises:
        BadInput: no object, or `z_spec` of another shape.
    """
    if len(pdf) == 0:
        raise BadInput("plot: no object to draw")
    if z_spec is not None and z_spec.shape != (len(pdf),):
        raise BadInput(f"plot: z_spec of shape {z_spec.shape} for PDFs of {len(pdf)} objects")
    if ax is None:
        ax = pyplot.subplots(figsize=(6, 3.2), layout="constrained")[1]
    known = np.full(len(pdf), False) if z_spec is None else np.isfinite(z_spec)
    curves, names = pdf / np.diff(edges), [f"{label} {k}".strip() for k in range(len(pdf))]
    if len(pdf) > _MAX_CURVES:
        curves, names = curves.mean(axis=0)[None], [f"{label} mean of {len(pdf):,} PDFs".strip()]
        if z_spec is not None and known.any():
            bins = np.linspace(edges[0], edges[-1], int(np.clip(2 * np.sqrt(known.sum()), 8, 50)) + 1)
            ax.hist(z_spec[known], bins, density=True, color="0.82", label=f"$z_{{spec}}$ of {known.sum():,}")
    elif len(pdf) == 1:
        names = [label or "PDF"]
    drawn = sum(isinstance(one, StepPatch) for one in ax.patches)
    for k, (curve, name) in enumerate(zip(curves, names, strict=True)):
        colour = COLOURS[(drawn + k) % len(COLOURS)]
        ax.stairs(curve, edges, color=colour, lw=1.4, label=name)
        if z_spec is not None and known[k] and len(pdf) <= _MAX_CURVES:
            ax.axvline(z_spec[k], color=colour, lw=1.2, ls=":", label=f"$z_{{spec}}$ {z_spec[k]:.3f}")
    ax.set(xlabel="redshift", ylabel="probability density", xlim=(edges[0], edges[-1]))
    ax.set_ylim(0, None)
    ax.legend(frameon=False, fontsize=8)
    return ax
