"""Which frames are there, and which of them each object is cut from: decided by file names and headers."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.progress import track
from hpcphotoz.sources.catalogue import Catalogue, epoch_ids
from hpcphotoz.sources.identifiers import Ids
from hpcphotoz.sources.surveys.fits import read_header
from hpcphotoz.sources.surveys.frame import LANCZOS_ORDER, Geometry, read_geometry, separation

BANDS = ("u", "g", "r", "i", "z")
PIXEL_SCALE = 0.396  # arcsec
EPOCHS = ("one", "all")

_FPC = re.compile(r"fpC-(?P<run>\d{6})-(?P<band>[ugriz])(?P<camcol>\d)-(?P<field>\d{4})\.fit(\.gz)?")
_FPM = re.compile(r"fpM-(?P<run>\d{6})-(?P<band>[ugriz])(?P<camcol>\d)-(?P<field>\d{4})\.fit(\.gz)?")
_FRAME = re.compile(
    r"frame-(?P<band>[ugriz])-(?P<run>\d{6})-(?P<camcol>\d)-(?P<field>\d{4})\.fits(\.gz|\.bz2)?"
)
_HEADER_THREADS = 8  # unpacking releases the interpreter lock
# So many objects a reason are listed one by one, the others are counted: a table of the whole survey and a
# few frames would otherwise make a manifest of 100 MB.
_MAX_LISTED = 1000
_Key = tuple[int, int, int]
Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, order=True)
class FrameSet:
    """Frames of the same sky, one a band."""

    run: int
    camcol: int
    field: int
    paths: tuple[Path, ...]  # in the order of the bands asked for
    masks: tuple[Path | None, ...] = dataclasses.field(
        default=(), compare=False
    )  # fpM files, in the same order
    kind: str = "fpC"  # or "frame": DR8 and later
    bands: tuple[str, ...] = BANDS

    @property
    def name(self) -> str:
        """For messages."""
        return f"run {self.run} camcol {self.camcol} field {self.field}"


@dataclass(frozen=True)
class CutoutList:
    """The objects to cut out of one frame set."""

    frame_set: FrameSet
    objects: Catalogue
    stamp_id: Ids  # (N,)


@dataclass(frozen=True)
class CutoutPlan:
    """Everything to cut: the same for any number of workers."""

    units: tuple[tuple[CutoutList, ...], ...]  # one a shard
    skipped: tuple[dict[str, Any], ...]
    rule: str  # of the stamps' object_id, in words
    repeated: int  # objects of several stamps
    covered: Floats  # (4 sets, 2) ra and dec of the reference frames' corners, deg


def find_frame_sets(
    frames: Path, bands: Sequence[str] = BANDS
) -> tuple[list[FrameSet], list[dict[str, Any]]]:
    """All frame sets below a folder, in order of run, camera column and field.

    Returns:
        The sets with all bands, and an entry of the manifest's `skipped` for each set that lacks one.

    Raises:
        BadInput: no frame, or the same frame twice (also once of DR7 and once of DR8).
    """
    if not frames.is_dir():
        raise BadInput(f"{frames}: no such folder")
    found: dict[str, dict[_Key, dict[str, Path]]] = {"fpC": {}, "fpM": {}, "frame": {}}
    for path in sorted(frames.rglob("f*")):
        for kind, pattern in (("fpC", _FPC), ("fpM", _FPM), ("frame", _FRAME)):
            match = pattern.fullmatch(path.name)
            if match is None or match["band"] not in bands:
                continue
            key = int(match["run"]), int(match["camcol"]), int(match["field"])
            paths = found[kind].setdefault(key, {})
            if match["band"] in paths:
                raise BadInput(f"{path}: the same frame as {paths[match['band']]}: remove one of them")
            paths[match["band"]] = path
    both = sorted(found["fpC"].keys() & found["frame"].keys())
    if both:
        one, other = (next(iter(found[kind][both[0]].values())) for kind in ("fpC", "frame"))
        raise BadInput(f"{one}: the same field as {other}, in another calibration: remove one of the kinds")
    if not found["fpC"] and not found["frame"]:
        raise BadInput(f"{frames}: no fpC-RRRRRR-BC-FFFF.fit[.gz] or frame-B-RRRRRR-C-FFFF.fits[.bz2] below")
    sets: list[FrameSet] = []
    incomplete = []
    for kind in ("fpC", "frame"):
        for key, paths in sorted(found[kind].items()):
            there = tuple(paths[band] for band in bands if band in paths)
            masks = tuple(found["fpM"].get(key, {}).get(band) for band in bands)
            frame_set = FrameSet(*key, there, masks, kind, tuple(bands))
            lacking = [band for band in bands if band not in paths]
            if lacking:
                incomplete.append(left_out_entry(frame_set, f"lacks its {', '.join(lacking)} frame"))
            else:
                sets.append(frame_set)
    return sorted(sets), incomplete


def left_out_entry(frame_set: FrameSet, reason: str) -> dict[str, Any]:
    """An entry of the manifest's `skipped` for a whole frame set, which stands for no object of its own."""
    return {"frame_set": frame_set.name, "count": 0, "reason": reason}


def report_left_out(frames: Path, entries: Sequence[Mapping[str, Any]], used: int) -> None:
    """Name the first frame set that is left out, and how many are, in one line on standard error.

    Args:
        frames: folder of the frames.
        entries: from `left_out_entry`.
        used: number of frame sets that are not.

    Raises:
        BadInput: none is used.
    """
    if not entries:
        return
    first = f"{entries[0]['frame_set']} {entries[0]['reason']}"
    if not used:
        raise BadInput(f"{frames}: none of its {len(entries)} frame sets is complete; the first: {first}")
    print(
        f"{frames}: left out {len(entries)} of {len(entries) + used} frame sets, incomplete ones (listed in "
        f"the manifest); the first: {first}",
        file=sys.stderr,
    )


def plan_cutouts(
    sets: Sequence[FrameSet], table: Catalogue, *, reference: int, stamp: int, shard_rows: int, epochs: str
) -> CutoutPlan:
    """Decide what each object is cut from: the field in which it lies farthest from the frame's edge.

    Args:
        sets: all frame sets; the header of each reference frame is read.
        table: all objects.
        reference: place of the reference band in the sets' paths.
        stamp: pixels a side.
        shard_rows: objects a unit at most; a set with more is split, so no other set is read twice.
        epochs: "one": a stamp an object, of whichever run; "all": a stamp an object and run.

    Raises:
        BadInput: a header that cannot be used, or stamps whose ids would be equal.
    """
    chosen, skipped, covered = _assign_objects(sets, table, reference, stamp, epochs)
    rows = np.concatenate([np.zeros(0, np.intp), *chosen])
    ids, rule = table.object_id[rows], "the table's object_id"
    if epochs == "all":
        runs = np.repeat([one.run for one in sets], [len(one) for one in chosen]).astype(np.int64)
        ids, rule = epoch_ids(ids, runs)
    units: list[list[CutoutList]] = []
    free = start = 0
    for frame_set, mine in zip(sets, chosen, strict=True):
        parts = max(-(-len(mine) // shard_rows), 1)
        for part in np.array_split(np.arange(start, start + len(mine)), parts):
            if len(part) > free:
                units.append([])
                free = shard_rows
            if len(part):
                units[-1].append(CutoutList(frame_set, table[rows[part]], ids[part]))
                free -= len(part)
        start += len(mine)
    repeated = int((np.unique(rows, return_counts=True)[1] > 1).sum())
    return CutoutPlan(tuple(tuple(unit) for unit in units), tuple(skipped), rule, repeated, covered)


def _assign_objects(
    sets: Sequence[FrameSet], table: Catalogue, reference: int, stamp: int, epochs: str
) -> tuple[list[Rows], list[dict[str, Any]], Floats]:
    """The rows of the table to cut out of each set, what can be cut out of none, and the frames' corners."""
    order = np.argsort(table.dec, kind="stable")
    dec = table.dec[order]
    chosen: list[Rows] = [np.zeros(0, np.intp) for _ in sets]
    skipped: list[dict[str, Any]] = []
    seen = np.zeros(len(table), np.bool_)
    margin, best = np.full(len(table), -1.0), np.full(len(table), -1)
    corners: list[Floats] = []
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        geometries = pool.map(_reference_geometry, sets, [reference] * len(sets))
        for k, geometry in enumerate(track(geometries, "reading headers", total=len(sets))):
            corners.append(_corners(geometry))
            rows, distance = _objects_on_frame(geometry, table, order, dec)
            better = distance > margin[rows]
            margin[rows[better]], best[rows[better]] = distance[better], k
            if k + 1 < len(sets) and (epochs == "one" or sets[k + 1].run == sets[k].run):
                continue
            held = margin >= (stamp - 1) / 2 + LANCZOS_ORDER
            usable = np.flatnonzero(held)
            for group in np.unique(best[usable]):
                chosen[group] = usable[best[usable] == group]
            for row in np.flatnonzero((best >= 0) & ~held):
                one = sets[best[row]]
                reason = f"stamp crosses the edge of the {one.bands[reference]} frame of {one.name}"
                skipped.append({"object_id": int(table.object_id[row]), "run": one.run, "reason": reason})
            seen |= best >= 0
            margin[:], best[:] = -1.0, -1
    skipped += skipped_entries(table.object_id[~seen], "outside every frame")
    return chosen, skipped, np.concatenate(corners)


def skipped_entries(object_id: Ids, reason: str) -> list[dict[str, Any]]:
    """Entries of the manifest's `skipped` for objects that are cut from no frame; many are only counted."""
    entry: dict[str, Any] = {"run": None, "reason": reason}
    entries = [{"object_id": one, **entry} for one in object_id[:_MAX_LISTED].tolist()]
    if len(object_id) > _MAX_LISTED:
        entries.append({"object_id": None, **entry, "count": len(object_id) - _MAX_LISTED})
    return entries


def _corners(geometry: Geometry) -> Floats:
    """Ra and dec (4, 2) of a frame's outermost pixels' centres, deg."""
    height, width = geometry.shape
    return geometry.sky(np.array([[x, y] for x in (0.0, width - 1.0) for y in (0.0, height - 1.0)]))


def sky_range(ra: Floats, dec: Floats) -> str:
    """Where places lie, in words; where they lie across ra 0, the first ra is the larger one."""
    around = np.sort(np.mod(ra, 360.0))
    gaps = np.diff(around, append=around[0] + 360.0)
    widest = int(np.argmax(gaps))
    first, last = around[(widest + 1) % len(around)], around[widest]
    return f"ra {first:.4f} to {last:.4f}, dec {dec.min():.4f} to {dec.max():.4f}"


def _reference_geometry(frame_set: FrameSet, reference: int) -> Geometry:
    path = frame_set.paths[reference]
    geometry = read_geometry(read_header(path), path, "an SDSS frame")
    scale = 3600 * geometry.pixel_area**0.5
    if not abs(scale / PIXEL_SCALE - 1) < 0.02:
        raise BadInput(f'{path}: {scale:.4g}" a pixel, not {PIXEL_SCALE}": expected an SDSS frame')
    return geometry


def _objects_on_frame(
    geometry: Geometry, table: Catalogue, order: Rows, dec: npt.NDArray[Any]
) -> tuple[Rows, npt.NDArray[Any]]:
    """Rows of the table that lie on a frame, and how far from its outermost pixels' centres, pixels.

    Args:
        geometry: of the frame.
        table: all objects.
        order: its rows by declination.
        dec: (N,) deg, in that order.
    """
    height, width = geometry.shape
    ra0, dec0 = geometry.sky(np.array([[(width - 1) / 2, (height - 1) / 2]]))[0]
    # A tangent plane has no place for the other half of the sky: only what is near is projected.
    radius = (geometry.pixel_area**0.5) * np.hypot(width, height) * 0.55
    first, stop = np.searchsorted(dec, [dec0 - radius, dec0 + radius])
    rows = order[first:stop]
    rows = rows[separation(table.ra[rows], table.dec[rows], float(ra0), float(dec0)) < radius]
    x, y = geometry.pixels(table.ra[rows], table.dec[rows]).T
    distance = np.min([x, width - 1 - x, y, height - 1 - y], axis=0)
    # Half a pixel beyond the last centre is still the frame.
    return rows[distance >= -0.5], np.maximum(distance[distance >= -0.5], 0.0)
