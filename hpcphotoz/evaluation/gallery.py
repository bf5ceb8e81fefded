"""A dataset at a glance, as one PNG: a mosaic of stamps, n(z), magnitudes, sky sigmas and pixel noise."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.atomic import replacing
from hpcphotoz.data import codec
from hpcphotoz.data.rows import check_finite
from hpcphotoz.data.shards import Header, Manifest, Stamps, columns, open_shard
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.baseline import RADII, apertures
from hpcphotoz.progress import track

try:
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError:
    raise BadInput("a picture of a dataset needs matplotlib: pip install 'hpcphotoz[report]'") from None

Floats = npt.NDArray[Any]
COLUMNS, ROWS = 8, 4  # of the mosaic
_SLAB = 32  # rows read together
_OBJECTS, _BYTES = 4096, 1 << 30  # sampled at most: seconds, whatever the dataset
_GALAXY = {"i": 0.65, "r": 1.0, "g": 1.7}  # these turn a typical galaxy (g - i about 1) grey
_COLOURS = ("#7B3FA0", "#2166C4", "#1A9850", "#E08214", "#C51B1B", "#5A3A22")  # of up to six bands
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Sample:
    """What is drawn, of n objects; the stamps of the mosaic are k of them."""

    stamps: Stamps  # (k,)
    stamp_flux: Floats  # (k, band) nMgy in the aperture
    flux: Floats  # (n, band) nMgy in the aperture
    z_spec: Floats  # (n,) NaN: unknown
    sky_sigma: Floats  # (n, band) nMgy a pixel
    scatter: Floats  # (n, band) nMgy: robust scatter of the pixels along the stamp's edge
    radius: float  # arcsec, of the aperture
    noise: Floats  # (band,) nMgy: median sky noise in the aperture


def draw_gallery(folder: Path, manifest: Manifest, out: Path, seed: int = 0) -> None:
    """Draw a dataset to a PNG file, written whole or not at all.

    Args:
        folder, manifest: the dataset.
        out: the file, ending in .png.
        seed: of the choice of objects.

    Raises:
        BadInput: not the name of a PNG file in a folder that is there, no object, or an unreadable shard.
    """
    if out.suffix.lower() != ".png":
        raise BadInput(f"{out}: a picture is written as PNG: give a name that ends in .png")
    if not out.parent.is_dir():
        raise BadInput(f"{out}: no such folder: {out.parent}")
    sample = take(folder, manifest, seed)
    with rc_context(_STYLE):
        figure: Any = Figure(figsize=(13, 11), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        rows = -(-len(sample.stamps) // COLUMNS)
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.75 * rows + 0.4, 3.9))
        figure.set_figheight(1.75 * rows + 4.3)
        _mosaic(top, folder, manifest, sample)
        axes = bottom.subplots(1, 4)
        _redshifts(axes[0], manifest, sample)
        _magnitudes(axes[1], manifest.header, sample)
        _sky(axes[2], manifest.header, sample)
        _noise(axes[3], manifest.header, sample)
        with replacing(out) as temporary, open(temporary, "wb") as file:
            canvas.print_png(file, metadata={"Software": "hpcphotoz"})


def take(folder: Path, manifest: Manifest, seed: int = 0) -> Sample:
    """Read some thousands of objects, in slabs spread over all shards; all of them if there are no more.

    Raises:
        BadInput: no object, or an unreadable shard.
    """
    if not manifest.rows:
        raise BadInput(f"{folder}: holds no object: nothing to draw")
    header, rng = manifest.header, np.random.default_rng(seed)
    slabs = _choose(manifest, rng)
    rows = sum(last - first for _, first, last in slabs)
    shown = np.sort(rng.choice(rows, min(rows, COLUMNS * ROWS), replace=False))
    half = header.stamp * header.pixel_scale / 2
    aperture = max([k for k in range(3) if RADII[k] <= half], default=0)
    weight = apertures(header)[aperture]
    kept, parts, seen = [], [], 0
    for stamps in track(_read(folder, manifest, slabs), "reading blocks of stamps", len(slabs)):
        here = shown[(shown >= seen) & (shown < seen + len(stamps))] - seen
        kept.append(stamps[here])
        flux = np.einsum("nbyx,yx->nb", stamps.images, weight)
        parts.append((flux, stamps.z_spec, stamps.sky_sigma, _edge_scatter(stamps.images), flux[here]))
        seen += len(stamps)
    flux, z_spec, sky_sigma, scatter, stamp_flux = (np.concatenate(p) for p in zip(*parts, strict=True))
    noise = np.sqrt((weight.astype(np.float64) ** 2).sum()) * np.median(sky_sigma, axis=0)
    stamps = Stamps.concatenate(kept)
    return Sample(stamps, stamp_flux, flux, z_spec, sky_sigma, scatter, RADII[aperture], noise)


def _choose(manifest: Manifest, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Shard, first row and end of each slab to read, in the order of the disk."""
    header = manifest.header
    row_bytes = 4 * len(header.bands) * header.stamp**2
    most = max(COLUMNS * ROWS, min(_OBJECTS, _BYTES // row_bytes))
    per_shard = np.array([-(-shard.rows // _SLAB) for shard in manifest.shards])
    starts = np.concatenate([[0], np.cumsum(per_shard)])
    chosen = np.arange(starts[-1])
    if manifest.rows > most:
        chosen = np.sort(rng.choice(starts[-1], -(-most // _SLAB), replace=False))
    shard = np.searchsorted(starts, chosen, side="right") - 1
    first = (chosen - starts[shard]) * _SLAB
    return [
        (int(s), int(f), min(int(f) + _SLAB, manifest.shards[s].rows))
        for s, f in zip(shard, first, strict=True)
    ]


def _read(folder: Path, manifest: Manifest, slabs: list[tuple[int, int, int]]) -> Iterator[Stamps]:
    file: Any = None
    opened = -1
    try:
        for number, first, last in slabs:
            if number != opened:
                if file is not None:
                    file.close()
                file, opened = open_shard(folder, manifest, manifest.shards[number]), number
            found = {name: file[name][first:last] for name in columns(manifest.header)}
            images = codec.decode(found["images"], found.pop("image_unit", None))
            check_finite(images, f"{folder / manifest.shards[number].file}: row", first)
            yield Stamps(**{**found, "images": images})
    finally:
        if file is not None:
            file.close()


def _edge_scatter(images: Floats) -> Floats:
    """1.4826 MAD of the outermost pixels of each stamp and band, (N, band): sky noise, if the edge is sky."""
    frame = np.ones(images.shape[2:], bool)
    frame[2:-2, 2:-2] = False
    edge = images[:, :, frame]
    middle = np.median(edge, axis=2, keepdims=True)
    return np.asarray(1.4826 * np.median(np.abs(edge - middle), axis=2))


def composite(images: Floats, sky_sigma: Floats, bands: tuple[str, ...]) -> Floats:
    """Colour pictures, (N, y, x, 3) on [0, 1], all with one asinh stretch of the mean of three bands.

    The ratio of the bands in a pixel, and so its colour, survives stretch and saturation (Lupton et al. 2004,
    doi:10.1086/382245). Nothing is subtracted: sky that was left in a stamp is seen.

    Args:
        images: (N, B, y, x) nMgy.
        sky_sigma: (N, B) nMgy; sets the faintest shade that is seen.
        bands: names; `three_bands` says which are red, green and blue.
    """
    three = three_bands(bands)
    names = tuple(bands[k].lower() for k in three)
    x = images[:, three].astype(np.float64)
    if names == ("i", "r", "g"):
        balance = np.array([_GALAXY[name] for name in names])
    else:  # grey is the mean colour of what is shown
        light = np.maximum(np.percentile(x, 99, axis=(2, 3)).mean(axis=0), 1e-12)
        balance = light.mean() / light
    x *= balance[:, None, None]
    noise = np.median(np.sqrt(((sky_sigma[:, three] * balance) ** 2).sum(axis=1))) / 3
    intensity = np.maximum(x.mean(axis=1), 1e-12)
    peaks = intensity.max(axis=(1, 2))
    top = np.arcsinh(max(float(np.percentile(peaks, 75)), 20 * noise) / (3 * noise))
    shade = np.arcsinh(intensity / (3 * noise)) / top
    colour = np.clip(np.moveaxis(x * (shade / intensity)[:, None], 1, 3), 0, None)
    return np.asarray(colour / np.maximum(colour.max(axis=3, keepdims=True), 1))


def three_bands(bands: tuple[str, ...]) -> list[int]:
    """Indices of red, green and blue: i, r, g where all are there; else the last, the middle, the first."""
    names = [band.lower() for band in bands]
    if {"i", "r", "g"} <= set(names):
        return [names.index(band) for band in ("i", "r", "g")]
    return [len(bands) - 1, len(bands) // 2, 0]


def magnitude(flux: Floats) -> Floats:
    """22.5 - 2.5 log10 of nMgy; NaN where the flux is not positive."""
    positive = np.where(flux > 0, flux, np.nan)
    return np.asarray(22.5 - 2.5 * np.log10(positive))


def _mosaic(figure: Any, folder: Path, manifest: Manifest, sample: Sample) -> None:
    header, stamps = manifest.header, sample.stamps
    three = [header.bands[k] for k in three_bands(header.bands)]
    colours = f"red green blue = {' '.join(three)}" if len(header.bands) > 1 else f"grey = {three[0]}"
    counts = f"{_count(manifest.rows, 'object')} in {_count(len(manifest.shards), 'shard')}"
    side = f"{header.stamp} pixels = {header.stamp * header.pixel_scale:.4g} arcsec a side"
    figure.suptitle(
        f"{folder.resolve().name}: {counts}, bands {' '.join(header.bands)}\n"
        f"{len(stamps)} shown, {side}; {colours}, one asinh stretch for all"
    )
    axes = figure.subplots(
        -(-len(stamps) // COLUMNS), COLUMNS, gridspec_kw={"wspace": 0.02, "hspace": 0.02}
    ).ravel()
    pictures = composite(stamps.images, stamps.sky_sigma, header.bands)
    green = three_bands(header.bands)[1]
    labels = magnitude(sample.stamp_flux[:, green])
    for ax in axes:
        ax.set_axis_off()
    for ax, picture, z, m in zip(axes, pictures, stamps.z_spec, labels, strict=False):
        ax.imshow(picture, origin="lower", interpolation="nearest")
        brightness = f"{header.bands[green]} {m:.1f}" if np.isfinite(m) else ""
        redshift = f"z {z:.3f}" if np.isfinite(z) else "z ?"
        ax.set_title(f"{redshift}   {brightness}", fontsize=8, pad=2)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


def _redshifts(ax: Any, manifest: Manifest, sample: Sample) -> None:
    known = sample.z_spec[np.isfinite(sample.z_spec)]
    unknown = sum(shard.unlabelled for shard in manifest.shards)
    ax.set(title=f"redshifts: {len(known):,} known of {len(sample.z_spec):,} sampled", xlabel="$z_{spec}$")
    if unknown:
        note = "no redshift is known" if unknown == manifest.rows else f"unknown: {unknown:,} of all"
        middle = unknown == manifest.rows
        x, y = (0.5, 0.5) if middle else (0.98, 0.97)
        ax.text(x, y, note, transform=ax.transAxes, ha="center" if middle else "right", va="top")
    if len(known):
        ax.hist(known, _bins(known), color="#56789A")
        ax.set_ylabel("objects")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        ax.set(xticks=[], yticks=[])


def _magnitudes(ax: Any, header: Header, sample: Sample) -> None:
    m, faintest = magnitude(sample.flux), magnitude(sample.noise)
    seen = np.where(sample.flux > sample.noise, m, np.nan)
    ax.set(
        title=f"magnitudes within {sample.radius:g} arcsec, {_count(len(m), 'object')}",
        xlabel="22.5 - 2.5 log$_{10}$(flux / nMgy)",
        ylabel="objects",
    )
    if not np.isfinite(seen).any():
        ax.text(0.5, 0.5, "no flux above its noise", transform=ax.transAxes, ha="center")
        return
    bins = _bins(seen[np.isfinite(seen)])
    for k, (band, shade) in enumerate(zip(header.bands, _shades(header), strict=True)):
        here = seen[:, k][np.isfinite(seen[:, k])]
        lost = 1 - len(here) / len(m)
        label = f"{band}, {100 * lost:.2g} % below 1 $\\sigma$" if lost else band
        ax.hist(here, bins, histtype="step", color=shade, lw=1.4, label=label)
        limit = faintest[k] - 2.5 * np.log10(5)
        if bins[0] < limit < bins[-1]:
            ax.axvline(limit, color=shade, lw=0.8, ls=":")
    ax.plot([], [], color="#555555", lw=0.8, ls=":", label="5 $\\sigma$ of the sky")
    _legend(ax, header)


def _sky(ax: Any, header: Header, sample: Sample) -> None:
    ax.set(title="sky sigma as recorded", xlabel="nMgy a pixel", ylabel="objects", xscale="log")
    low, high = float(sample.sky_sigma.min()), float(sample.sky_sigma.max())
    bins = np.geomspace(low / 1.05, high * 1.05, 60)
    for band, shade, values in zip(header.bands, _shades(header), sample.sky_sigma.T, strict=True):
        label = f"{band} {np.median(values):.3g}"
        ax.hist(values, bins, histtype="stepfilled", color=shade, alpha=0.6, label=label)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    _legend(ax, header, title="median")


def _noise(ax: Any, header: Header, sample: Sample) -> None:
    ax.set(title="scatter of edge pixels / sky sigma", xlabel="1: pure sky noise", ylabel="objects")
    ratio = sample.scatter / sample.sky_sigma
    high = max(1.5, float(np.percentile(ratio, 98)))
    bins = np.linspace(min(0.5, float(ratio.min())), high, 60)
    for band, shade, values in zip(header.bands, _shades(header), ratio.T, strict=True):
        label = f"{band} {np.median(values):.3g}"
        ax.hist(np.minimum(values, high), bins, histtype="step", color=shade, lw=1.4, label=label)
    ax.axvline(1, color="black", lw=0.8, ls=":")
    _legend(ax, header, title="median")


def _bins(values: Floats) -> Floats:
    """Edges of about sqrt(n) bins; one value makes one bar."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.02, 0.01 * (high - low))
    return np.linspace(low - pad, high + pad, int(np.clip(2 * np.sqrt(len(values)), 8, 50)))


def _shades(header: Header) -> list[Any]:
    """A colour a band, blue to red in the order of the bands."""
    if len(header.bands) <= len(_COLOURS):
        return list(_COLOURS[: len(header.bands)])
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, len(header.bands))))


def _legend(ax: Any, header: Header, title: str | None = None) -> None:
    """Below the panel, where it hides nothing; counts of objects are whole numbers."""
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 4.8}
    columns = 2 if title is None and len(header.bands) < 9 else 3
    ax.legend(title=title, handlelength=1, columnspacing=1, ncols=columns, **place)
