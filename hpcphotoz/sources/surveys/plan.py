"""Assigns each object to the frame set that it is cut from, by the headers of the frames."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.progress import track
from hpcphotoz.sources.catalogue import Catalogue, epoch_ids
from hpcphotoz.sources.engine.append import Target
from hpcphotoz.sources.engine.damage import damage_entry
from hpcphotoz.sources.identifiers import Ids
from hpcphotoz.sources.optional_imports import sources_extra
from hpcphotoz.sources.surveys.frame import LANCZOS_ORDER, Floats, Geometry
from hpcphotoz.sources.surveys.survey import FrameSet, Survey

with sources_extra():
    from astropy.coordinates import angular_separation

EPOCHS = ("one", "all")
_HEADER_THREADS = 8  # unpacking releases the interpreter lock
# The number of objects that are listed for one reason; further ones are only counted. Otherwise a table of
# the whole survey with a few frames would give a manifest of 100 MB.
_MAX_LISTED = 1000
_SCALE_TOLERANCE = 0.02  # of a frame's pixel scale against the survey's
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class CutoutList:
    """The objects to cut out of one frame set."""

    frame_set: FrameSet
    objects: Catalogue
    stamp_id: Ids  # (N,)


@dataclass(frozen=True)
class CutoutPlan:
    """All cutouts of a build: the same for any number of workers."""

    units: tuple[tuple[CutoutList, ...], ...]  # one a shard
    skipped: tuple[dict[str, Any], ...]
    rule: str  # how the stamps' object_id are formed, in words
    repeated: int  # number of objects with several stamps
    covered: Floats  # (4 sets, 2) ra and dec of the reference frames' corners, deg
    already_there: int = 0  # number of stamps that the dataset to append to has


def plan_cutouts(
    survey: Survey,
    sets: Sequence[FrameSet],
    table: Catalogue,
    *,
    reference: int,
    stamp: int,
    shard_rows: int,
    epochs: str,
    target: Target,
) -> CutoutPlan:
    """Assigns each object to the frame set in which it lies farthest from the frame's edge.

    Args:
        survey: of the frames.
        sets: all frame sets; the header of each reference frame is read.
        table: all objects.
        reference: place of the reference band in the sets' files.
        stamp: pixels a side.
        shard_rows: most objects in a unit; only a set with more is split, and its frames are read again, or
            the part of them in which the unit's objects lie.
        epochs: "one": one stamp for each object, from any run; "all": one for each object and run.
        target: what is written to; stamps that it has are left out.

    Raises:
        BadInput: a header cannot be used, or two stamps would have the same id.
    """
    chosen, skipped, covered = _assign_objects(survey, sets, table, reference, stamp, epochs)
    if survey.windows:  # neighbours into one unit: it then reads a strip of a large frame
        chosen = [
            mine if len(mine) <= shard_rows else mine[np.argsort(table.dec[mine], kind="stable")]
            for mine in chosen
        ]
    rows = np.concatenate([np.zeros(0, np.intp), *chosen])
    ids, rule = table.object_id[rows], "the table's object_id"
    if epochs == "all":
        runs = np.repeat([one.epoch for one in sets], [len(one) for one in chosen]).astype(np.int64)
        ids, rule = epoch_ids(ids, runs)
    new = target.lacks(ids)
    ends = np.cumsum([len(one) for one in chosen])[:-1]
    chosen = [mine[part] for mine, part in zip(chosen, np.split(new, ends), strict=True)]
    rows, ids = rows[new], ids[new]
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
    return CutoutPlan(
        tuple(tuple(unit) for unit in units), tuple(skipped), rule, repeated, covered, int((~new).sum())
    )


def usable_sets(
    survey: Survey, sets: Sequence[FrameSet], reference: int, damaged: str
) -> tuple[list[FrameSet], list[dict[str, Any]]]:
    """Returns the sets whose headers can be used, and entries of `skipped` for the others.

    Raises:
        BadInput: unless damaged files are skipped, that of the first one that cannot be used.
    """

    def problem(one: FrameSet) -> dict[str, Any] | None:
        try:
            _reference_geometry(survey, one, reference)
            survey.notes([one])
        except BadInput as error:
            return damage_entry(damaged, one.name, error)
        return None

    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        found = list(pool.map(problem, sets))
    good = [one for one, wrong in zip(sets, found, strict=True) if wrong is None]
    return good, [wrong for wrong in found if wrong is not None]


def _assign_objects(
    survey: Survey, sets: Sequence[FrameSet], table: Catalogue, reference: int, stamp: int, epochs: str
) -> tuple[list[Rows], list[dict[str, Any]], Floats]:
    """Returns the table's rows to cut from each set, the skipped objects, and the frames' corners."""
    order = np.argsort(table.dec, kind="stable")
    dec = table.dec[order]
    chosen: list[Rows] = [np.zeros(0, np.intp) for _ in sets]
    skipped: list[dict[str, Any]] = []
    seen = np.zeros(len(table), np.bool_)
    margin, best = np.full(len(table), -1.0), np.full(len(table), -1)
    corners: list[Floats] = []
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        geometries = pool.map(lambda one: _reference_geometry(survey, one, reference), sets)
        for k, geometry in enumerate(track(geometries, "reading headers", total=len(sets))):
            height, width = geometry.shape
            edges = [[x, y] for x in (0.0, width - 1.0) for y in (0.0, height - 1.0)]
            corners.append(geometry.sky(np.array(edges)))
            rows, distance = _objects_on_frame(geometry, table, order, dec)
            better = distance > margin[rows]
            margin[rows[better]], best[rows[better]] = distance[better], k
            if k + 1 < len(sets) and (epochs == "one" or sets[k + 1].epoch == sets[k].epoch):
                continue
            held = margin >= (stamp - 1) / 2 + LANCZOS_ORDER
            usable = np.flatnonzero(held)
            for group in np.unique(best[usable]):
                chosen[group] = usable[best[usable] == group]
            for row in np.flatnonzero((best >= 0) & ~held):
                one = sets[best[row]]
                reason = f"stamp crosses the edge of the {one.bands[reference]} frame of {one.name}"
                skipped.append(skipped_object(int(table.object_id[row]), one, reason))
            seen |= best >= 0
            margin[:], best[:] = -1.0, -1
    skipped += skipped_entries(table.object_id[~seen], "outside every frame")
    return chosen, skipped, np.concatenate(corners)


def skipped_object(object_id: int, frame_set: FrameSet, reason: str) -> dict[str, Any]:
    """Returns the entry of the manifest's `skipped` for one object, with the run if the survey has runs."""
    run = {} if frame_set.epoch is None else {"run": frame_set.epoch}
    return {"object_id": object_id, **run, "reason": reason}


def skipped_entries(object_id: Ids, reason: str) -> list[dict[str, Any]]:
    """Returns entries of the manifest's `skipped` for objects that are cut from no frame."""
    entry: dict[str, Any] = {"run": None, "reason": reason}
    entries = [{"object_id": one, **entry} for one in object_id[:_MAX_LISTED].tolist()]
    if len(object_id) > _MAX_LISTED:
        entries.append({"object_id": None, **entry, "count": len(object_id) - _MAX_LISTED})
    return entries


def sky_range(ra: Floats, dec: Floats) -> str:
    """Describes the range of places in words; if it contains ra 0, the first ra is the larger one."""
    around = np.sort(np.mod(ra, 360.0))
    gaps = np.diff(around, append=around[0] + 360.0)
    widest = int(np.argmax(gaps))
    first, last = around[(widest + 1) % len(around)], around[widest]
    return f"ra {first:.4f} to {last:.4f}, dec {dec.min():.4f} to {dec.max():.4f}"


def _reference_geometry(survey: Survey, frame_set: FrameSet, reference: int) -> Geometry:
    files = frame_set.files[reference]
    geometry = survey.read_geometry(files)
    height, width = geometry.shape
    scale = 3600 * geometry.local_pixel_area(width / 2, height / 2) ** 0.5
    if not abs(scale / survey.pixel_scale - 1) < _SCALE_TOLERANCE:
        raise BadInput(
            f'{files.image}: {scale:.4g}" a pixel, not {survey.pixel_scale}": expected {survey.title}'
        )
    return geometry


def _objects_on_frame(
    geometry: Geometry, table: Catalogue, order: Rows, dec: npt.NDArray[Any]
) -> tuple[Rows, npt.NDArray[Any]]:
    """Returns the table's rows on a frame, and their distances from the centres of its edge pixels, pixels.

    `order` are the table's rows by declination, and `dec` (N,) the declinations in that order, deg.
    """
    height, width = geometry.shape
    ra0, dec0 = geometry.sky(np.array([[(width - 1) / 2, (height - 1) / 2]]))[0]
    # Only objects near the frame are projected: the other half of the sky has no place in a tangent plane.
    radius = (geometry.pixel_area**0.5) * np.hypot(width, height) * 0.55
    first, stop = np.searchsorted(dec, [dec0 - radius, dec0 + radius])
    rows = order[first:stop]
    there = np.radians([table.ra[rows], table.dec[rows]])
    rows = rows[np.degrees(angular_separation(*there, *np.radians([ra0, dec0]))) < radius]
    x, y = geometry.pixels(table.ra[rows], table.dec[rows]).T
    distance = np.min([x, width - 1 - x, y, height - 1 - y], axis=0)
    # Half a pixel beyond the last centre is still the frame.
    return rows[distance >= -0.5], np.maximum(distance[distance >= -0.5], 0.0)
