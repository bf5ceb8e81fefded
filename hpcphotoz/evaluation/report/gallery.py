"""A dataset at a glance, as one PNG: a mosaic of stamps, n(z), magnitudes, sky sigmas and pixel noise."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.atomic import atomic_write, check_output_file
from hpcphotoz.data import hdf5
from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.manifest import Header, Manifest, columns
from hpcphotoz.data.format.shards import naming_damage, open_shard
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import check_finite
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.baseline.knn import RADII, apertures
from hpcphotoz.progress import track

try:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError:
    raise BadInput("a picture of a dataset needs matplotlib: pip install 'hpcphotoz[report]'") from None

Floats = npt.NDArray[Any]
COLUMNS, ROWS = 8, 4  # of the mosaic
_SLAB_ROWS = 32  # rows read together
_MAX_OBJECTS, _MAX_BYTES = 4096, 1 << 30  # sampled at most: seconds, whatever the dataset
_GREY_BALANCE = {"i": 0.65, "r": 1.0, "g": 1.7}  # these turn a typical galaxy (g - i about 1) grey
_COLOURS = {"u": "#7B3FA0", "g": "#2166C4", "r": "#1A9850", "i": "#E08214", "z": "#C51B1B", "y": "#5A3A22"}
_OTHER_COLOURS = ("#0E9AA7", "#D6479A", "#7A7A00", "#4A5568", "#B08BD9", "#6BBF59")  # of other bands, in turn
_CLIPPED_STD = 0.98658  # of a unit normal distribution cut at 3 sigma
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
}


@dataclass(frozen=True)
class DatasetSample:
    """Measurements of n objects drawn from a dataset, and the stamps of k of them for the mosaic."""

    stamps: Stamps  # (k,)
    stamp_flux: Floats  # (k, band) nMgy in the aperture
    flux: Floats  # (n, band) nMgy in the aperture
    z_spec: Floats  # (n,) NaN: unknown
    sky_sigma: Floats  # (n, band) nMgy a pixel
    scatter: Floats  # (n, band) nMgy: clipped scatter of the pixels along the stamp's edge
    radius: float  # arcsec, of the aperture
    noise: Floats  # (band,) nMgy: median sky noise in the aperture


def check_plot_path(out: Path) -> None:
    """Check, before the dataset is read, that a PNG file can be written at a path; create nothing.

    Raises:
        BadInput: not the name of a PNG file in a folder that is there and may be written.
    """
    if out.suffix.lower() != ".png":
        raise BadInput(f"{out}: a picture is written as PNG: give a name that ends in .png")
    check_output_file(out)


def plot_dataset(folder: Path, manifest: Manifest, out: Path, seed: int = 0) -> None:
    """Draw a dataset to a PNG file, written whole or not at all.

    Args:
        folder, manifest: the dataset.
        out: the file, ending in .png.
        seed: of the choice of objects.

    Raises:
        BadInput: as `check_plot_path`, no object, or an unreadable shard.
    """
    check_plot_path(out)
    sample = sample_dataset(folder, manifest, seed)
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
        _noise(axes[3], manifest, sample)
        with atomic_write(out) as temporary, open(temporary, "wb") as file:
            canvas.print_png(file, metadata={"Software": "hpcphotoz"})


def sample_dataset(folder: Path, manifest: Manifest, seed: int = 0) -> DatasetSample:
    """Read at most a few thousand objects, in slabs of rows drawn at random over all shards.

    Raises:
        BadInput: no object, or an unreadable shard.
    """
    if not manifest.rows:
        raise BadInput(f"{folder}: holds no object: nothing to draw")
    header, rng = manifest.header, np.random.default_rng(seed)
    slabs = _choose(manifest, rng)
    rows = sum(last - first for _, first, last in slabs)
    mosaic = np.sort(rng.choice(rows, min(rows, COLUMNS * ROWS), replace=False))
    half = header.stamp * header.pixel_scale / 2
    aperture = max([k for k in range(3) if RADII[k] <= half], default=0)
    weight = apertures(header)[aperture]
    kept, parts, seen = [], [], 0
    for stamps in track(_read(folder, manifest, slabs), "reading blocks of stamps", len(slabs)):
        here = mosaic[(mosaic >= seen) & (mosaic < seen + len(stamps))] - seen
        kept.append(stamps[here])
        flux = np.einsum("nbyx,yx->nb", stamps.images, weight)
        parts.append((flux, stamps.z_spec, stamps.sky_sigma, _edge_scatter(stamps.images), flux[here]))
        seen += len(stamps)
    flux, z_spec, sky_sigma, scatter, stamp_flux = (np.concatenate(p) for p in zip(*parts, strict=True))
    noise = np.sqrt((weight.astype(np.float64) ** 2).sum()) * np.median(sky_sigma, axis=0)
    stamps = Stamps.concatenate(kept)
    return DatasetSample(stamps, stamp_flux, flux, z_spec, sky_sigma, scatter, RADII[aperture], noise)


def _choose(manifest: Manifest, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Shard, first row and end of each slab to read, in the order of the disk."""
    header = manifest.header
    row_bytes = 4 * len(header.bands) * header.stamp**2
    most = max(COLUMNS * ROWS, min(_MAX_OBJECTS, _MAX_BYTES // row_bytes))
    per_shard = np.array([-(-shard.rows // _SLAB_ROWS) for shard in manifest.shards])
    starts = np.concatenate([[0], np.cumsum(per_shard)])
    chosen = np.arange(starts[-1])
    if manifest.rows > most:
        chosen = np.sort(rng.choice(starts[-1], -(-most // _SLAB_ROWS), replace=False))
    shard = np.searchsorted(starts, chosen, side="right") - 1
    first = (chosen - starts[shard]) * _SLAB_ROWS
    return [
        (int(s), int(f), min(int(f) + _SLAB_ROWS, manifest.shards[s].rows))
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
            path = folder / manifest.shards[number].file
            with naming_damage(path, first, last):
                found = {name: hdf5.read(file[name], first, last) for name in columns(manifest.header)}
            images = encoding.decode(found["images"], found.pop("image_unit", None))
            check_finite(images, f"{path}: row", first)
            yield Stamps(**{**found, "images": images})
    finally:
        if file is not None:
            file.close()


def _edge_scatter(images: Floats) -> Floats:
    """Standard deviation of the outermost pixels of each stamp and band, (N, band), cut at 3 of itself.

    It is the sky noise, if the edge is sky. (The median absolute deviation would be a whole number of int16's
    units.)
    """
    frame = np.ones(images.shape[2:], bool)
    frame[2:-2, 2:-2] = False
    edge = images[:, :, frame].astype(np.float64)
    away = edge - np.median(edge, axis=2, keepdims=True)
    sigma = 1.4826 * np.median(np.abs(away), axis=2)
    sigma = np.where(sigma > 0, sigma, away.std(axis=2))
    for _ in range(3):
        kept = np.abs(away) <= 3 * sigma[:, :, None]
        sigma = away.std(axis=2, where=kept) / _CLIPPED_STD
    return np.asarray(sigma)


def rgb_images(images: Floats, sky_sigma: Floats, bands: tuple[str, ...]) -> Floats:
    """Colour pictures, (N, y, x, 3) on [0, 1], all with one asinh stretch of the mean of three bands.

    The ratio of the bands in a pixel, and so its colour, survives stretch and saturation (Lupton et al. 2004,
    doi:10.1086/382245). Nothing is subtracted: sky that was left in a stamp is seen.

    Args:
        images: (N, B, y, x) nMgy.
        sky_sigma: (N, B) nMgy; sets the faintest shade that is seen.
        bands: names; `three_bands` says which are red, green and blue.
    """
    three = three_bands(bands)
    names = tuple(band_letter(bands[k]) for k in three)
    x = images[:, three].astype(np.float64)
    if names == ("i", "r", "g"):
        balance = np.array([_GREY_BALANCE[name] for name in names])
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
    names = [band_letter(band) for band in bands]
    if {"i", "r", "g"} <= set(names):
        return [names.index(band) for band in ("i", "r", "g")]
    return [len(bands) - 1, len(bands) // 2, 0]


def band_letter(band: str) -> str:
    """Which of u g r i z y a band is, by its name or the end of it (des-g, HSC-R2); else empty."""
    found = re.search(r"(?:^|[^a-z0-9])([ugrizy])[^a-z]*$", band.lower())
    return found[1] if found else ""


def band_colours(bands: tuple[str, ...]) -> list[str]:
    """A colour a band: of u g r i z y always the same, of others in turn."""
    others = [band for band in bands if not band_letter(band)]
    return [
        _COLOURS[band_letter(band)]
        if band_letter(band)
        else _OTHER_COLOURS[others.index(band) % len(_OTHER_COLOURS)]
        for band in bands
    ]


def caption_band(bands: tuple[str, ...]) -> int:
    """Index of the band whose magnitude stands above a stamp: r, else the middle one."""
    names = [band_letter(band) for band in bands]
    return names.index("r") if "r" in names else len(bands) // 2


def magnitude(flux: Floats) -> Floats:
    """22.5 - 2.5 log10 of nMgy; NaN where the flux is not positive."""
    positive = np.where(flux > 0, flux, np.nan)
    return np.asarray(22.5 - 2.5 * np.log10(positive))


def _mosaic(figure: Any, folder: Path, manifest: Manifest, sample: DatasetSample) -> None:
    header, stamps = manifest.header, sample.stamps
    three = [header.bands[k] for k in three_bands(header.bands)]
    shades = f"red green blue = {' '.join(three)}" if len(header.bands) > 1 else f"grey = {three[0]}"
    k = caption_band(header.bands)
    counts = f"{_count(manifest.rows, 'object')} in {_count(len(manifest.shards), 'shard')}"
    side = f"{header.stamp} pixels = {header.stamp * header.pixel_scale:.4g} arcsec a side"
    figure.suptitle(
        f"{folder.resolve().name}: {counts}, bands {' '.join(header.bands)}\n"
        f"{len(stamps)} shown, {side}; {shades}, one asinh stretch for all; "
        f"above each: redshift, {header.bands[k]} magnitude"
    )
    axes = figure.subplots(
        -(-len(stamps) // COLUMNS), COLUMNS, gridspec_kw={"wspace": 0.02, "hspace": 0.02}
    ).ravel()
    pictures = rgb_images(stamps.images, stamps.sky_sigma, header.bands)
    flux = sample.stamp_flux[:, k]
    labels = magnitude(np.where(flux > sample.noise[k], flux, np.nan))
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
    m, faintest = magnitude(sample.flux), magnitude(sample.noise)
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
    _rows(ax, header, list(seen.T), bins, notes, "< 1 $\\sigma$" if lost.any() else "")
    limits = faintest - 2.5 * np.log10(5)
    inside = (bins[0] < limits) & (limits < bins[-1])
    if inside.any():
        low = len(header.bands) - 1 - np.flatnonzero(inside)
        ax.vlines(limits[inside], low, low + 0.92, color="black", lw=1, ls=":")
        ax.set_xlabel(ax.get_xlabel() + "\ndotted: 5 $\\sigma$ of the sky")


def _sky(ax: Any, header: Header, sample: DatasetSample) -> None:
    ax.set(title="sky sigma as recorded", xlabel="nMgy a pixel (logarithmic)", xscale="log")
    low, high = float(sample.sky_sigma.min()), float(sample.sky_sigma.max())
    bins = np.geomspace(low / 1.05, high * 1.05, int(np.clip(4 * np.sqrt(len(sample.sky_sigma)), 25, 80)))
    _rows(ax, header, list(sample.sky_sigma.T), bins, _medians(sample.sky_sigma, ".3g"), "median")
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
        meaning += "\nthe bars at the ends hold all beyond"
    ax.set(title="scatter of edge pixels / sky sigma", xlabel=meaning)
    ax.axvline(1, color="black", lw=0.8, ls=":")
    _rows(ax, manifest.header, list(np.clip(ratio, low, high).T), bins, _medians(ratio, ".2f"), "median")


def _medians(values: Floats, form: str) -> list[str]:
    return [format(median, form) for median in np.median(values, axis=0)]


def _rows(ax: Any, header: Header, values: list[Floats], bins: Floats, notes: list[str], head: str) -> None:
    """Draw one histogram per band, the first at the top, on one scale, with a note each under `head`."""
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
    """Edges of about 2 sqrt(n) bins; one value makes one bar."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.02, 0.01 * (high - low))
    return np.linspace(low - pad, high + pad, int(np.clip(2 * np.sqrt(len(values)), 8, 50)))
