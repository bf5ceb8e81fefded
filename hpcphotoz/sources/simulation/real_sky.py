"""Real SDSS fields for `simulate --onto`: frames, masks and PSFs, and empty places in them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE
from hpcphotoz.sources.noise import frame_sky_sigma
from hpcphotoz.sources.simulation.rendering import STAMP
from hpcphotoz.sources.simulation.survey_tables import R_BAND
from hpcphotoz.sources.surveys import survey
from hpcphotoz.sources.surveys.fits import read_header
from hpcphotoz.sources.surveys.frame import Floats, Frame
from hpcphotoz.sources.surveys.sdss.calibration import calibration_notes, nmgy_per_count
from hpcphotoz.sources.surveys.sdss.fields import FILE_NAMES, find_frame_sets, is_dr8
from hpcphotoz.sources.surveys.sdss.frames import read_fpc
from hpcphotoz.sources.surveys.sdss.masks import BAD_PLANES, MaskFlags
from hpcphotoz.sources.surveys.sdss.psf import FieldPSF, read_psf
from hpcphotoz.sources.surveys.survey import FrameSet, left_out_entry, report_left_out

PATCH = STAMP + 8  # pixels of a frame that a stamp may draw on: half a stamp, a fraction, and Lanczos-3
FIELDS_IN_MEMORY = 2  # 80 MB each


@dataclass(frozen=True)
class RealField:
    """One frame set in memory, with its masks, PSF and gain."""

    name: str
    frames: tuple[Frame, ...]  # in the order of BANDS
    masks: tuple[MaskFlags, ...]  # (y, x) a band: pixels not to trust
    psf: FieldPSF
    electrons: Floats  # (band,) per nanomaggy


@dataclass(frozen=True)
class FieldBlock:
    """A block of galaxies, `start` to `stop - 1`, that all go into one field."""

    frame_set: FrameSet
    start: int
    stop: int


def field_blocks(sets: Sequence[FrameSet], start: int, stop: int) -> tuple[FieldBlock, ...]:
    """Returns the blocks of galaxies `start` to `stop - 1`; the fields take turns, block by block."""
    size = PLACEMENT.block
    blocks = []
    for number in range(start // size, (stop - 1) // size + 1):
        field = sets[number % len(sets)]
        first, last = max(start, number * size), min(stop, (number + 1) * size)
        blocks.append(FieldBlock(field, first, last))
    return tuple(blocks)


@lru_cache(maxsize=FIELDS_IN_MEMORY)
def load_field(frame_set: FrameSet) -> RealField:
    """Reads a field's frames, their masks, and its psField file.

    Raises:
        BadInput: a file is missing or cannot be read.
    """
    frames = tuple(read_fpc(files) for files in frame_set.files)
    masks = tuple(frame.flags for frame in frames if frame.flags is not None)
    psf = read_psf(psf_path(frame_set))
    per_count = [nmgy_per_count(files, read_header(files.image)) for files in frame_set.files]
    return RealField(frame_set.name, frames, masks, psf, psf.gain / np.array(per_count))


def psf_path(frame_set: FrameSet) -> Path:
    """Returns the path of the set's psField file, or the one it would have beside the r frame."""
    files = frame_set.files[R_BAND]
    run, camcol, field = (int(text) for text in frame_set.label.partition(" ")[2].split("-"))
    return files.psf or files.image.parent / f"psField-{run:06d}-{camcol}-{field:04d}.fit"


def mask_paths(frame_set: FrameSet) -> list[Path]:
    """Returns the set's fpM files, of the bands that have one."""
    return [files.mask for files in frame_set.files if files.mask is not None]


def used_files(frame_set: FrameSet) -> list[Path]:
    """Returns all files of the set that its field is made from."""
    calibrations = {files.calibration: None for files in frame_set.files if files.calibration is not None}
    images = [files.image for files in frame_set.files]
    return [*images, *mask_paths(frame_set), psf_path(frame_set), *calibrations]


def complete_sets(frames: Path) -> tuple[list[FrameSet], list[dict[str, Any]]]:
    """Finds the frame sets below a folder that have masks and PSF, and entries for those that lack some.

    Says in a line on standard error how many frames have a preliminary calibration only.

    Raises:
        BadInput: no set is complete, frames are of DR8 or later, or a psField file is not readable.
    """
    all_sets = find_frame_sets(frames)
    if not all_sets:
        raise BadInput(f"{frames}: no {FILE_NAMES} below")
    found, incomplete = survey.complete_sets(frames, all_sets, BANDS)
    sets, without = [], []
    for one in found:
        if is_dr8(one):
            raise BadInput(f"{one.files[R_BAND].image}: galaxies are put into fpC frames (SDSS DR7) only")
        if len(mask_paths(one)) < len(BANDS):
            without.append(
                left_out_entry(one, "lacks an fpM file: one a band is needed, to keep off bad pixels")
            )
        elif one.files[R_BAND].psf is None:
            without.append(left_out_entry(one, f"lacks its {psf_path(one).name}"))
        else:
            read_psf(psf_path(one))  # otherwise a defect in the last field would show after hours
            sets.append(one)
    report_left_out(frames, incomplete + without, len(sets))
    for line in calibration_notes(sets)[0]:
        print(line, file=sys.stderr)
    return sets, incomplete + without


def patch_corner(x: float, y: float) -> tuple[int, int]:
    """Returns the first column and row of the patch around a place."""
    return int(np.floor(x)) - PATCH // 2 + 1, int(np.floor(y)) - PATCH // 2 + 1


def _patch_is_clean(mask: MaskFlags, x: float, y: float) -> bool:
    """Returns whether the patch around a place lies in the frame and has no flagged pixel."""
    x0, y0 = patch_corner(x, y)
    height, width = mask.shape
    if x0 < 0 or y0 < 0 or x0 + PATCH > width or y0 + PATCH > height:
        return False
    return not mask[y0 : y0 + PATCH, x0 : x0 + PATCH].any()


def project(source: Frame, target: Frame, x: Any, y: Any) -> Any:
    """Projects the source's pixel positions into the target, exactly (`cutouts.project` is linear)."""
    there = target.geometry.pixels(*source.geometry.sky(np.stack([np.ravel(x), np.ravel(y)], axis=1)).T)
    return there[:, 0].reshape(np.shape(x)), there[:, 1].reshape(np.shape(x))


@dataclass(frozen=True)
class Placement:
    """The rule for an empty place.

    No pixel from which the stamp of any band is resampled may be flagged in `planes`, and the r-band flux
    within `radius` of the centre must be below `sigmas` times its noise. Neighbours farther out stay.
    """

    radius: float = 3.0  # arcsec
    sigmas: float = 5.0
    planes: tuple[str, ...] = BAD_PLANES
    tries: int = 1000
    block: int = 64  # consecutive galaxies that share a field, which is read once for them


PLACEMENT = Placement()


def find_place(field: RealField, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Draws places until one is empty; returns its x, y in each band's frame.

    Raises:
        BadInput: the field is too crowded.
    """
    reference = field.frames[R_BAND]
    height, width = reference.image.shape
    offset_y, offset_x = np.indices((2 * _RADIUS_PX + 1, 2 * _RADIUS_PX + 1)) - _RADIUS_PX
    disc = np.hypot(offset_y, offset_x) * PIXEL_SCALE <= PLACEMENT.radius
    half = PATCH / 2
    for _ in range(PLACEMENT.tries if min(height, width) > PATCH else 0):
        x, y = rng.uniform(half, width - half), rng.uniform(half, height - half)
        place = [(x, y) if f is reference else project(reference, f, x, y) for f in field.frames]
        if not all(_patch_is_clean(mask, *at) for mask, at in zip(field.masks, place, strict=True)):
            continue
        cx, cy = round(x), round(y)
        around = reference.image[cy - _RADIUS_PX : cy + _RADIUS_PX + 1, cx - _RADIUS_PX : cx + _RADIUS_PX + 1]
        noise = frame_sky_sigma(reference.image, x, y) * np.sqrt(disc.sum())
        if around[disc].sum(dtype=np.float64) < PLACEMENT.sigmas * noise:
            return [(float(x), float(y)) for x, y in place]
    raise BadInput(
        f"{field.name}: no empty place for a {STAMP}-pixel stamp in {PLACEMENT.tries} tries: too crowded or "
        "too much of it is masked: take its frames out of the folder"
    )


_RADIUS_PX = int(PLACEMENT.radius / PIXEL_SCALE) + 1
