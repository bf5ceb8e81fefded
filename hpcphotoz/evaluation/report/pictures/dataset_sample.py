"""A random sample of a dataset's objects, measured for the picture of the dataset."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data import hdf5
from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.format.shards import check_finite, naming_damage, open_shard
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import columns_to_read, to_stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.baseline.photometry import RADII, apertures, shown_aperture
from hpcphotoz.progress import track
from hpcphotoz.sources.noise import stamp_sky_sigma

Floats = npt.NDArray[Any]
MOSAIC_STAMPS = 32
_SLAB_ROWS = 32  # rows read together
_MAX_OBJECTS, _MAX_BYTES = 4096, 1 << 30  # of a sample: it takes seconds, whatever the dataset


@dataclass(frozen=True)
class DatasetSample:
    """Measurements of n objects drawn from a dataset, and the stamps of k of them for the mosaic."""

    stamps: Stamps  # (k,)
    stamp_flux: Floats  # (k, band) nMgy in the aperture
    flux: Floats  # (n, band) nMgy in the aperture
    z_spec: Floats  # (n,) NaN: unknown
    sky_sigma: Floats  # (n, band) nMgy a pixel
    scatter: Floats  # (n, band) nMgy a pixel: sky sigma measured on the stamp's outer pixels
    radius: float  # arcsec, of the aperture
    noise: Floats  # (band,) nMgy: median sky noise in the aperture


def sample_dataset(folder: Path, manifest: Manifest, seed: int = 0) -> DatasetSample:
    """Read at most a few thousand objects, in slabs of rows drawn at random from all shards.

    Raises:
        BadInput: the dataset is empty, or a shard cannot be read.
    """
    if not manifest.rows:
        raise BadInput(f"{folder}: holds no object: nothing to draw")
    header, rng = manifest.header, np.random.default_rng(seed)
    slabs = _choose_slabs(manifest, rng)
    rows = sum(last - first for _, first, last in slabs)
    mosaic = np.sort(rng.choice(rows, min(rows, MOSAIC_STAMPS), replace=False))
    aperture = shown_aperture(header)
    weight = apertures(header)[aperture]
    kept, parts, seen = [], [], 0
    for stamps in track(_read_slabs(folder, manifest, slabs), "reading blocks of stamps", len(slabs)):
        here = mosaic[(mosaic >= seen) & (mosaic < seen + len(stamps))] - seen
        kept.append(stamps[here])
        flux = np.einsum("nbyx,yx->nb", stamps.images, weight)
        parts.append((flux, stamps.z_spec, stamps.sky_sigma, stamp_sky_sigma(stamps.images), flux[here]))
        seen += len(stamps)
    flux, z_spec, sky, scatter, stamp_flux = (np.concatenate(p) for p in zip(*parts, strict=True))
    noise = np.sqrt((weight.astype(np.float64) ** 2).sum()) * np.median(sky, axis=0)
    stamps = Stamps.concatenate(kept)
    return DatasetSample(stamps, stamp_flux, flux, z_spec, sky, scatter, RADII[aperture], noise)


def _choose_slabs(manifest: Manifest, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Shard, first row and end of each slab to read, in stored order."""
    header = manifest.header
    row_bytes = 4 * len(header.bands) * header.stamp**2
    most = max(MOSAIC_STAMPS, min(_MAX_OBJECTS, _MAX_BYTES // row_bytes))
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


def _read_slabs(folder: Path, manifest: Manifest, slabs: list[tuple[int, int, int]]) -> Iterator[Stamps]:
    names = columns_to_read(manifest.header)
    for number, slabs_of_shard in itertools.groupby(slabs, lambda slab: slab[0]):
        path = folder / manifest.shards[number].file
        with open_shard(folder, manifest, manifest.shards[number]) as file:
            for _, first, last in slabs_of_shard:
                with naming_damage(path, first, last):
                    found = {name: hdf5.read(file[name], first, last) for name in names}
                stamps = to_stamps(manifest.header, found)
                check_finite(stamps.images, path, first)
                yield stamps
