"""The picture of a dataset, one PNG: a mosaic of stamps, n(z), magnitudes, sky sigmas and pixel noise."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.atomic import atomic_write, check_output_file
from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.magnitudes import ab_magnitude, magnitude_band
from hpcphotoz.evaluation.report.figure import figure_png, text_of
from hpcphotoz.evaluation.report.pictures.dataset_sample import DatasetSample, sample_dataset
from hpcphotoz.evaluation.report.pictures.rgb import band_colours, rgb_images, three_bands

try:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError:
    raise BadInput("plots need matplotlib: pip install 'hpcphotoz[report]'") from None

Floats = npt.NDArray[Any]
COLUMNS = 8  # of the mosaic
_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5}


def check_plot_path(out: Path) -> None:
    """Raise BadInput unless a path ends in .png and its folder can be written; create nothing."""
    if out.suffix.lower() != ".png":
        raise BadInput(f"{out}: a picture is written as PNG: give a name that ends in .png")
    check_output_file(out)


def plot_dataset(folder: Path, manifest: Manifest, out: Path, seed: int = 0) -> None:
    """Draw a picture of a dataset: a mosaic of stamps and histograms. The PNG file is written atomically.

    Args:
        folder, manifest: the dataset.
        out: the file, ending in .png.
        seed: of the choice of objects.

    Raises:
        BadInput: as `check_plot_path`, an empty dataset, or an unreadable shard.
    """
    check_plot_path(out)
    sample = sample_dataset(folder, manifest, seed)
    rows = -(-len(sample.stamps) // COLUMNS)

    def draw(figure: Any) -> None:
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.75 * rows + 0.4, 3.9))
        _mosaic(top, folder, manifest, sample)
        axes = bottom.subplots(1, 4)
        _redshifts(axes[0], manifest, sample)
        _magnitudes(axes[1], manifest.header, sample)
        _sky_sigmas(axes[2], manifest.header, sample)
        _noise(axes[3], manifest, sample)

    png = figure_png(draw, 13, 1.75 * rows + 4.3, _STYLE)
    with atomic_write(out) as temporary:
        temporary.write_bytes(png)


def _mosaic(figure: Any, folder: Path, manifest: Manifest, sample: DatasetSample) -> None:
    header, stamps = manifest.header, sample.stamps
    three = [header.bands[k] for k in three_bands(header.bands)]
    shades = f"red green blue = {' '.join(three)}" if len(header.bands) > 1 else f"grey = {three[0]}"
    k = magnitude_band(header.bands)
    counts = f"{_count(manifest.rows, 'object')} in {_count(len(manifest.shards), 'shard')}"
    side = f"{header.stamp} pixels = {header.stamp * header.pixel_scale:.4g} arcsec a side"
    figure.suptitle(
        f"{text_of(folder.resolve().name)}: {counts}, bands {' '.join(header.bands)}\n"
        f"{len(stamps)} stamps, {side}; {shades}, the same asinh stretch for all; "
        f"titles: redshift, {header.bands[k]} magnitude"
    )
    axes = figure.subplots(
        -(-len(stamps) // COLUMNS), COLUMNS, gridspec_kw={"wspace": 0.02, "hspace": 0.02}
    ).ravel()
    pictures = rgb_images(stamps.images, stamps.sky_sigma, header.bands)
    flux = sample.stamp_flux[:, k]
    labels = ab_magnitude(np.where(flux > sample.noise[k], flux, np.nan))
    for ax in axes:
        ax.set_axis_off()
    for ax, picture, z, m in zip(axes, pictures, stamps.z_spec, labels, strict=False):
        ax.imshow(picture, origin="lower", interpolation="nearest")
        brightness = f"{header.bands[k]} {m:.1f}" if np.isfinite(m) else "no mag"
        redshift = f"z {z:.3f}" if np.isfinite(z) else "z ?"
        ax.set_title(f"{redshift}   {brightness}", fontsize=8, pad=2)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


def _redshifts(ax: Any, manifest: Manifest, sample: DatasetSample) -> None:
    known = sample.z_spec[np.isfinite(sample.z_spec)]
    unknown = sum(shard.unlabelled for shard in manifest.shards)
    ax.set(title=f"redshifts: {len(known):,} known of {len(sample.z_spec):,} sampled", xlabel="$z_{spec}$")
    if 0 < unknown < manifest.rows:
        ax.set_xlabel(f"$z_{{spec}}$ (unknown: {unknown:,} of all {manifest.rows:,})")
    if len(known):
        ax.hist(known, _bins(known), color="#56789A")
        ax.set_ylabel("objects")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        note = "no redshift is known" if unknown == manifest.rows else "none known in the sample"
        ax.text(0.5, 0.5, note, transform=ax.transAxes, ha="center")
        ax.set(xticks=[], yticks=[])


def _magnitudes(ax: Any, header: Header, sample: DatasetSample) -> None:
    m, faintest = ab_magnitude(sample.flux), ab_magnitude(sample.noise)
    seen = np.where(sample.flux > sample.noise, m, np.nan)
    ax.set(
        title=f"magnitudes within radius {sample.radius:g} arcsec",
        xlabel="22.5 - 2.5 log$_{10}$(flux / nMgy)",
    )
    if not np.isfinite(seen).any():
        ax.text(0.5, 0.5, "no flux above its noise", transform=ax.transAxes, ha="center")
        ax.set(xticks=[], yticks=[])
        return
    bins = _bins(seen[np.isfinite(seen)])
    lost = np.isnan(seen).mean(axis=0)
    notes = [f"{100 * part:.2g} %" if part else "" for part in lost]
    _band_histograms(ax, header, list(seen.T), bins, notes, "faint" if lost.any() else "")
    if lost.any():
        ax.set_xlabel(ax.get_xlabel() + "\nfaint: objects below 1 $\\sigma$ of the sky, not drawn")
    limits = faintest - 2.5 * np.log10(5)
    inside = (bins[0] < limits) & (limits < bins[-1])
    if inside.any():
        low = len(header.bands) - 1 - np.flatnonzero(inside)
        ax.vlines(limits[inside], low, low + 0.92, color="black", lw=1, ls=":")
        ax.set_xlabel(ax.get_xlabel() + "\ndotted: 5 $\\sigma$ of the sky")


def _sky_sigmas(ax: Any, header: Header, sample: DatasetSample) -> None:
    ax.set(title="sky sigma as recorded", xlabel="nMgy a pixel (logarithmic)", xscale="log")
    low, high = float(sample.sky_sigma.min()), float(sample.sky_sigma.max())
    bins = np.geomspace(low / 1.05, high * 1.05, int(np.clip(4 * np.sqrt(len(sample.sky_sigma)), 25, 80)))
    _band_histograms(ax, header, list(sample.sky_sigma.T), bins, _medians(sample.sky_sigma, ".3g"), "median")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(4))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _noise(ax: Any, manifest: Manifest, sample: DatasetSample) -> None:
    resampled = bool(manifest.provenance.get("resampling"))
    meaning = "below 1: resampling smooths noise" if resampled else "1: pure sky noise"
    ratio = sample.scatter / sample.sky_sigma
    low, high = min(0.8, float(np.percentile(ratio, 1))), max(1.2, float(np.percentile(ratio, 98)))
    bins = np.linspace(low, high, int(np.clip(3 * np.sqrt(len(ratio)), 20, 60)))
    if ((ratio < low) | (ratio > high)).any():
        meaning += "\nthe bars at the ends include all beyond"
    ax.set(title="scatter of outer pixels / sky sigma", xlabel=meaning)
    ax.axvline(1, color="black", lw=0.8, ls=":")
    _band_histograms(
        ax, manifest.header, list(np.clip(ratio, low, high).T), bins, _medians(ratio, ".2f"), "median"
    )


def _medians(values: Floats, form: str) -> list[str]:
    return [format(median, form) for median in np.median(values, axis=0)]


def _band_histograms(
    ax: Any, header: Header, values: list[Floats], bins: Floats, notes: list[str], head: str
) -> None:
    """Draw a histogram per band on a common scale, the first at the top; notes beside, `head` above them."""
    counts = [np.histogram(one[np.isfinite(one)], bins)[0] for one in values]
    tallest = max(1, *(int(count.max()) for count in counts))
    bases = np.arange(len(values))[::-1]
    size = float(np.clip(130 / len(values), 3, 8))
    for base, count, shade, note in zip(bases, counts, band_colours(header.bands), notes, strict=True):
        heights = base + 0.9 * count / tallest
        ax.stairs(heights, bins, baseline=base, fill=True, color=shade, alpha=0.25)
        ax.stairs(heights, bins, baseline=base, color=shade, lw=1.3)
        ax.text(1.02, base + 0.4, note, transform=ax.get_yaxis_transform(), va="center", fontsize=size)
    ax.text(1.02, len(values), head, transform=ax.get_yaxis_transform(), va="center", fontsize=size)
    ax.margins(x=0.03)
    ax.set(ylim=(0, len(values)), ylabel=f"objects (tallest bar: {tallest:,})")
    ax.set_yticks(bases + 0.4, header.bands, fontsize=size + 1)
    ax.tick_params(axis="y", length=0)


def _bins(values: Floats) -> Floats:
    """Edges of about 2 sqrt(n) bins; a single value makes one bar."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.02, 0.01 * (high - low))
    return np.linspace(low - pad, high + pad, int(np.clip(2 * np.sqrt(len(values)), 8, 50)))
