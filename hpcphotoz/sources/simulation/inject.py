"""Simulated galaxies of known redshift in real sky: the images of real frames with a galaxy more in each.

The way of Balrog (Suchyta et al. 2016, MNRAS 457, 786): the galaxy is added to the pixels of each band's
frame, seen through that frame's own point spread function there and with its photons counted by that frame's
gain; then the stamp is resampled from those pixels as stamps of real galaxies are. Noise, its correlations,
neighbours and the sky's unevenness are real.

Galaxy k of seed s is the galaxy k that `simulate` makes of that seed. Where it goes is drawn from the same
generator, in the field that its index gives, so that it depends on the frames found but not on the number of
objects, shards or processes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.folder import check_dataset_folder
from hpcphotoz.data.format.shards import Header, Manifest, Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import UnitStamps, build
from hpcphotoz.sources.mpi import mpi_ranks
from hpcphotoz.sources.simulation.population import (
    BANDS,
    R_BAND,
    Galaxy,
    SurveyTables,
    draw_galaxy,
    make_survey_tables,
)
from hpcphotoz.sources.simulation.rendering import PIXEL_SCALE, STAMP, render_in_pixels
from hpcphotoz.sources.simulation.simulate import check_arguments, provenance
from hpcphotoz.sources.surveys.fits import header_numbers, read_header
from hpcphotoz.sources.surveys.frame import Floats, Frame, resample, sky_sigma
from hpcphotoz.sources.surveys.sdss import read_frame
from hpcphotoz.sources.surveys.sdss_fields import FrameSet, find_frame_sets, left_out_entry, report_left_out
from hpcphotoz.sources.surveys.sdss_masks import BAD_PLANES, Mask, read_mask
from hpcphotoz.sources.surveys.sdss_psf import FieldPSF, read_psf

PATCH = STAMP + 8  # pixels of a frame that a stamp may draw on: half a stamp, a fraction, and Lanczos-3
FIELDS_IN_MEMORY = 2  # 80 MB each


@dataclass(frozen=True)
class Placement:
    """Where a galaxy may go.

    A place is empty enough if no pixel that any band's stamp is resampled from is flagged in `planes`, and
    the r-band flux within `radius` of the centre is below `sigmas` times its noise. Neighbours farther out
    stay.
    """

    radius: float = 3.0  # arcsec
    sigmas: float = 5.0
    planes: tuple[str, ...] = BAD_PLANES
    tries: int = 1000
    block: int = 64  # so many galaxies in a row share a field, which is read once for them


_PLACEMENT = Placement()


@dataclass(frozen=True)
class RealField:
    """One frame set in memory, with what it takes to put a galaxy into it."""

    name: str
    frames: tuple[Frame, ...]  # in the order of BANDS
    masks: tuple[Mask, ...]  # (y, x) a band: pixels not to trust
    psf: FieldPSF
    electrons: Floats  # (band,) per nanomaggy


@dataclass(frozen=True)
class InjectedGalaxy:
    """One galaxy in one place, and its stamp."""

    galaxy: Galaxy
    place: tuple[tuple[float, float], ...]  # x, y in each band's frame, pixels from 0
    ra: float  # deg
    dec: float
    image: npt.NDArray[np.float32]  # (band, 64, 64) nanomaggies
    sky_sigma: Floats  # (band,) of the frames there, nanomaggies per pixel


def simulate_onto(
    out: Path,
    n: int,
    frames: Path,
    *,
    seed: int = 0,
    shard_rows: int = 1024,
    processes: int | None = None,
    storage: str = "float32",
) -> Manifest:
    """Write a dataset of `n` simulated galaxies in real sky: ugriz stamps of 64 x 64 pixels, nanomaggies.

    `ebv` is the simulated galaxy's, by which its fluxes are dimmed; `ra` and `dec` are where it was put;
    `sky_sigma` is that of the frames there before it was. A frame set without one of its frames, its masks or
    its psField file is left out, and listed in the manifest's provenance.

    Args:
        out: folder to create.
        n: number of galaxies.
        frames: folder searched at any depth for fpC frames with their fpM and psField files.
        seed: as `simulate`.
        shard_rows: objects a shard; a shard is one process's work, in whose memory it is made.
        processes: None: one a core; each holds up to 150 MB of frames. Under MPI the ranks are the processes.
        storage: of the images: float32, float16 or int16.

    Returns:
        The manifest of the finished dataset.

    Raises:
        BadInput: an argument out of range, no complete frame set, a file that cannot be read, a field without
            an empty place, a folder that cannot be used, or a worker process that died.
    """

    def plan_here() -> tuple[InjectGalaxies, list[tuple[FieldBlock, ...]], dict[str, Any]]:
        check_arguments(n, seed, 1 if processes is None else processes)
        if shard_rows < 1:
            raise BadInput(f"shard rows {shard_rows}: must be at least 1")
        check_dataset_folder(out)
        sets, incomplete = _complete_sets(frames)
        files = [path for one in sets for path in (*one.paths, *_mask_paths(one), psf_path(one))]
        tables = make_survey_tables()
        record = provenance(n, seed, tables.survey) | {
            "onto": [path.name for path in files],
            "placement": asdict(_PLACEMENT),
            "resampling": "Lanczos-3 onto the r frame's grid",
            "skipped": incomplete,
        }
        units = [field_blocks(sets, start, min(start + shard_rows, n)) for start in range(0, n, shard_rows)]
        return InjectGalaxies(tables, seed, tuple(record["versions"].items())), units, record

    make, units, record = mpi_ranks().on_first_rank(plan_here)
    manifest, _ = build(
        out,
        Header(BANDS, STAMP, PIXEL_SCALE, storage),
        make,
        units,
        provenance=record,
        what="putting galaxies into frames, shards",
        processes=processes,
    )
    return manifest


@dataclass(frozen=True)
class FieldBlock:
    """Galaxies `start` to `stop - 1`, all put into one field."""

    frame_set: FrameSet
    psf: Path  # its psField file, for the fingerprint of the unit
    start: int
    stop: int


@dataclass(frozen=True)
class InjectGalaxies:
    """Makes the galaxies of a shard: of its blocks, in order."""

    tables: SurveyTables
    seed: int
    versions: tuple[tuple[str, str], ...]  # of the libraries that draw: with other ones no shard is kept

    def __call__(self, unit: Any) -> UnitStamps:
        return UnitStamps(inject_blocks(self.tables, unit, self.seed))


def field_blocks(sets: Sequence[FrameSet], start: int, stop: int) -> tuple[FieldBlock, ...]:
    """The fields of galaxies `start` to `stop - 1`: fields take turns, a block of galaxies each."""
    size = _PLACEMENT.block
    blocks = []
    for number in range(start // size, (stop - 1) // size + 1):
        field = sets[number % len(sets)]
        first, last = max(start, number * size), min(stop, (number + 1) * size)
        blocks.append(FieldBlock(field, psf_path(field), first, last))
    return tuple(blocks)


def inject_blocks(tables: SurveyTables, blocks: Sequence[FieldBlock], seed: int) -> Stamps:
    """The objects of some blocks of a seed, in memory.

    Raises:
        BadInput: as `load_field` and `find_place`.
    """
    objects = [
        inject(tables, load_field(block.frame_set), seed, index)
        for block in blocks
        for index in range(block.start, block.stop)
    ]
    indices = np.concatenate([np.arange(block.start, block.stop, dtype=np.int64) for block in blocks])
    return Stamps(
        images=np.stack([one.image for one in objects]),
        z_spec=np.array([one.galaxy.z for one in objects], np.float32),
        ebv=np.array([one.galaxy.ebv for one in objects], np.float32),
        object_id=(np.int64(seed) << np.int64(32)) | indices,
        sky_sigma=np.array([one.sky_sigma for one in objects], np.float32),
        ra=np.array([one.ra for one in objects]),
        dec=np.array([one.dec for one in objects]),
    )


def inject(tables: SurveyTables, field: RealField, seed: int, index: int) -> InjectedGalaxy:
    """Put object `index` of a seed into a field.

    Raises:
        BadInput: no place for it (`find_place`).
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    galaxy = draw_galaxy(tables, rng)
    place = find_place(field, rng)
    corners = [_patch_corner(x, y) for x, y in place]
    psfs = [field.psf.bands[b].at(*place[b]) for b in range(len(BANDS))]
    centres = [(x - x0, y - y0) for (x, y), (x0, y0) in zip(place, corners, strict=True)]
    light = count_photons(render_in_pixels(galaxy, psfs, centres, PATCH), field.electrons, rng)
    reference = field.frames[R_BAND]
    along_y, along_x = np.mgrid[:STAMP, :STAMP] - (STAMP - 1) / 2
    grid = place[R_BAND][0] + along_x, place[R_BAND][1] + along_y
    image = np.empty((len(BANDS), STAMP, STAMP), np.float32)
    for b, (frame, (x0, y0)) in enumerate(zip(field.frames, corners, strict=True)):
        x, y = grid if b == R_BAND else _project(reference, frame, *grid)
        pixels = frame.image[y0 : y0 + PATCH, x0 : x0 + PATCH] + light[b]
        patch = replace(frame, image=np.asarray(pixels, np.float32))
        image[b] = resample(patch, x - x0, y - y0) * (
            reference.geometry.pixel_area / frame.geometry.pixel_area
        )
    ((ra, dec),) = reference.geometry.sky(np.array([place[R_BAND]]))
    noise = np.array([sky_sigma(frame, *at) for frame, at in zip(field.frames, place, strict=True)])
    return InjectedGalaxy(galaxy, tuple(place), float(ra), float(dec), image, noise)


def count_photons(
    light: Floats,  # (band, y, x) nanomaggies
    electrons: Floats,  # (band,) per nanomaggy
    rng: np.random.Generator,
) -> Floats:
    """The same light counted in electrons; where a measured PSF's wing is below zero it stays as it is."""
    scale = electrons[:, None, None]
    expected = np.maximum(light, 0) * scale
    return np.asarray(light + (rng.poisson(expected) - expected) / scale)


def find_place(field: RealField, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Draw places until one is empty enough; its x, y in each band's frame.

    Raises:
        BadInput: the field is too crowded.
    """
    reference = field.frames[R_BAND]
    height, width = reference.image.shape
    offset_y, offset_x = np.indices((2 * _RADIUS_PX + 1, 2 * _RADIUS_PX + 1)) - _RADIUS_PX
    disc = np.hypot(offset_y, offset_x) * PIXEL_SCALE <= _PLACEMENT.radius
    half = PATCH / 2
    for _ in range(_PLACEMENT.tries if min(height, width) > PATCH else 0):
        x, y = rng.uniform(half, width - half), rng.uniform(half, height - half)
        place = [(x, y) if f is reference else _project(reference, f, x, y) for f in field.frames]
        if not all(_patch_is_clean(mask, *at) for mask, at in zip(field.masks, place, strict=True)):
            continue
        cx, cy = round(x), round(y)
        around = reference.image[cy - _RADIUS_PX : cy + _RADIUS_PX + 1, cx - _RADIUS_PX : cx + _RADIUS_PX + 1]
        noise = sky_sigma(reference, x, y) * np.sqrt(disc.sum())
        if around[disc].sum(dtype=np.float64) < _PLACEMENT.sigmas * noise:
            return [(float(x), float(y)) for x, y in place]
    raise BadInput(
        f"{field.name}: no empty place for a {STAMP}-pixel stamp in {_PLACEMENT.tries} tries: too crowded or "
        "too much of it is masked: take its frames out of the folder"
    )


_RADIUS_PX = int(_PLACEMENT.radius / PIXEL_SCALE) + 1


@lru_cache(maxsize=FIELDS_IN_MEMORY)
def load_field(frame_set: FrameSet) -> RealField:
    """Read a field's frames, their masks, and the psField file beside its r frame.

    Raises:
        BadInput: a file that is missing or cannot be read.
    """
    frames = tuple(read_frame(path) for path in frame_set.paths)
    masks = tuple(
        read_mask(path, frame.image.shape, _PLACEMENT.planes)
        for path, frame in zip(_mask_paths(frame_set), frames, strict=True)
    )
    psf = read_psf(psf_path(frame_set))
    flux20 = [
        header_numbers(read_header(path), ("FLUX20",), path, "an fpC frame of SDSS DR7")["FLUX20"]
        for path in frame_set.paths
    ]
    return RealField(frame_set.name, frames, masks, psf, psf.gain * np.array(flux20) / 10)


def psf_path(frame_set: FrameSet) -> Path:
    """Where the set's psField file is."""
    name = f"psField-{frame_set.run:06d}-{frame_set.camcol}-{frame_set.field:04d}.fit"
    return frame_set.paths[R_BAND].parent / name


def _mask_paths(frame_set: FrameSet) -> list[Path]:
    """The set's fpM files, of the bands that have one."""
    return [path for path in frame_set.masks if path is not None]


def _complete_sets(frames: Path) -> tuple[list[FrameSet], list[dict[str, Any]]]:
    """All frame sets below a folder with what injection needs beside frames, and those that lack some of it.

    Raises:
        BadInput: none is complete, frames of DR8 or later, or an unreadable psField file.
    """
    found, incomplete = find_frame_sets(frames)
    sets, without = [], []
    for one in found:
        if one.kind != "fpC":
            raise BadInput(f"{one.paths[R_BAND]}: galaxies are put into fpC frames (SDSS DR7) only")
        if len(_mask_paths(one)) < len(BANDS):
            without.append(
                left_out_entry(one, "lacks an fpM file: one a band is needed, to keep off bad pixels")
            )
        elif not psf_path(one).exists():
            without.append(left_out_entry(one, f"lacks its {psf_path(one).name}"))
        else:
            read_psf(psf_path(one))  # a defect in the last field would otherwise show after hours
            sets.append(one)
    report_left_out(frames, incomplete + without, len(sets))
    return sets, incomplete + without


def _patch_corner(x: float, y: float) -> tuple[int, int]:
    """First column and row of the patch around a place."""
    return int(np.floor(x)) - PATCH // 2 + 1, int(np.floor(y)) - PATCH // 2 + 1


def _patch_is_clean(mask: Mask, x: float, y: float) -> bool:
    """Whether the patch lies whole in the frame and none of its pixels is flagged."""
    x0, y0 = _patch_corner(x, y)
    height, width = mask.shape
    if x0 < 0 or y0 < 0 or x0 + PATCH > width or y0 + PATCH > height:
        return False
    return not mask[y0 : y0 + PATCH, x0 : x0 + PATCH].any()


def _project(source: Frame, target: Frame, x: Any, y: Any) -> Any:
    """The target's pixel positions of the sky that the source has at these."""
    there = target.geometry.pixels(*source.geometry.sky(np.stack([np.ravel(x), np.ravel(y)], axis=1)).T)
    return there[:, 0].reshape(np.shape(x)), there[:, 1].reshape(np.shape(x))
