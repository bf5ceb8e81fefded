"""SDSS DR7 frames plus an object table in, a dataset of stamps out.

The five bands of a run, camera column and field are one frame set. A stamp has the orientation and scale of
the set's r frame (TAN, 0.396"/px), which moves the sky by no more than the survey's drift between bands, and
its centre (pixel position (S - 1)/2) is on the object. The other bands are resampled onto it by Lanczos-3;
the r band too, by the fraction of a pixel that centring takes. No background beyond the frame's own SKY is
subtracted.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.data.shards import Header, Manifest, Stamps, read_manifest
from hpcphotoz.data.writer import DatasetWriter
from hpcphotoz.errors import BadInput
from hpcphotoz.progress import track
from hpcphotoz.sources.fpc import Floats, Frame, read_frame, resample, separation, sky_sigma
from hpcphotoz.sources.objects import RUNS, Objects, read_objects

BANDS = ("u", "g", "r", "i", "z")
PIXEL_SCALE = 0.396  # arcsec
_NAME = re.compile(r"fpC-(\d{6})-([ugriz])(\d)-(\d{4})\.fit(?:\.gz)?")
_FAR = 1.0  # deg; a frame's diagonal is 0.28


@dataclass(frozen=True, order=True)
class FrameSet:
    """Five frames of the same sky."""

    run: int
    camcol: int
    field: int
    paths: tuple[Path, ...]  # in the order of BANDS

    @property
    def name(self) -> str:
        """For messages."""
        return f"run {self.run} camcol {self.camcol} field {self.field}"


def ingest_frames(
    out: Path, frames: Path, objects: Path, *, stamp: int = 64, shard_rows: int = 1024
) -> Manifest:
    """Cut stamps of a table's objects out of all frame sets below a folder.

    An object that several runs saw gives one stamp a run, with `object_id` = the table's id * 1,000,000 +
    run; within a run the first field that holds it whole is taken. Objects that no frame holds whole are
    listed, with the reason, in the manifest's provenance and counted on standard error.

    Args:
        out: folder to create.
        frames: folder searched at any depth for `fpC-*.fit` and `fpC-*.fit.gz`.
        objects: CSV with `object_id`, `ra_deg` or `ra`, `dec_deg` or `dec` (deg), and optionally `z_spec` or
            `z` (empty or absent: unknown) and `ebv` (mag; empty or absent: 0).
        stamp: pixels a side.
        shard_rows: objects a shard.

    Returns:
        The manifest of the finished dataset.

    Raises:
        BadInput: a frame that cannot be read, a set without one of its bands, a table without a column or
        with a bad
            value, or no stamp at all.
    """
    if not 4 <= stamp <= 1024:
        raise BadInput(f"stamp {stamp}: must be from 4 to 1024 pixels")
    table, sets = read_objects(objects), find_frame_sets(frames)
    skipped: list[dict[str, Any]] = []
    provenance = {
        "command": "ingest sdss-frames",
        "frames": [path.name for one in sets for path in one.paths],
        "objects": objects.name,
        "object_id": f"table's object_id * {RUNS} + run",
        "resampling": "Lanczos-3 onto the r frame's grid",
        "skipped": skipped,  # filled before the manifest is written
    }
    taken: set[int] = set()
    with DatasetWriter(out, Header(BANDS, stamp, PIXEL_SCALE), shard_rows, provenance) as writer:
        for one in track(sets, "cutting stamps, frame sets", total=len(sets)):
            stamps = cut_stamps(one, table, stamp, taken, skipped)
            taken.update(stamps.object_id.tolist())
            if len(stamps):
                writer.append(stamps)
        if not taken:
            raise BadInput(
                f"{objects}: none of its {len(table.ra)} objects lies whole in a frame below {frames}"
            )
        _finish(skipped, table, taken)
    _report(skipped, len(taken))
    return read_manifest(out)


def cut_stamps(
    frame_set: FrameSet, table: Objects, stamp: int, taken: set[int], skipped: list[dict[str, Any]]
) -> Stamps:
    """The stamps of one frame set, one band in memory at a time.

    Args:
        frame_set: where from.
        table: all objects.
        stamp: pixels a side.
        taken: stamp ids that an earlier field of the run gave; not cut again.
        skipped: gets an entry for each object in this frame that comes too near an edge.
    """
    reference = read_frame(frame_set.paths[BANDS.index("r")])
    rows = np.array(
        [k for k in _in_frame(reference, table) if table.object_id[k] * RUNS + frame_set.run not in taken],
        np.intp,
    )
    grids = _grids(reference, table.ra[rows], table.dec[rows], stamp)
    images = np.zeros((len(rows), len(BANDS), stamp, stamp), np.float32)
    sigma = np.zeros((len(rows), len(BANDS)), np.float32)
    kept = np.ones(len(rows), np.bool_)
    for b, band in enumerate(BANDS):
        frame = reference if band == "r" else read_frame(frame_set.paths[b])
        for k in np.flatnonzero(kept):
            x, y = grids[k] if band == "r" else _carried(reference, frame, *grids[k])
            if frame.holds(x, y):
                images[k, b] = resample(frame, x, y) * (reference.pixel_area / frame.pixel_area)
                sigma[k, b] = _sky_sigma(frame, float(x.mean()), float(y.mean()))
                continue
            kept[k] = False
            reason = f"stamp crosses the edge of the {band} frame of {frame_set.name}"
            skipped.append(
                {"object_id": int(table.object_id[rows[k]]), "run": frame_set.run, "reason": reason}
            )
    index = rows[kept]
    return Stamps(
        images=images[kept],
        z_spec=table.z_spec[index].astype(np.float32),
        ebv=table.ebv[index].astype(np.float32),
        object_id=table.object_id[index] * RUNS + frame_set.run,
        sky_sigma=sigma[kept],
        ra=table.ra[index],
        dec=table.dec[index],
    )


def find_frame_sets(frames: Path) -> list[FrameSet]:
    """All frame sets below a folder, in order of run, camera column and field.

    Raises:
        BadInput: no frame, the same frame twice, or a set that lacks a band.
    """
    if not frames.is_dir():
        raise BadInput(f"{frames}: no such folder")
    found: dict[tuple[int, int, int], dict[str, Path]] = {}
    for path in sorted(frames.rglob("fpC-*")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        run, band, camcol, field = match.groups()
        bands = found.setdefault((int(run), int(camcol), int(field)), {})
        if band in bands:
            raise BadInput(f"{path}: the same frame as {bands[band]}: remove one of them")
        bands[band] = path
    if not found:
        raise BadInput(f"{frames}: no fpC-RRRRRR-BC-FFFF.fit or .fit.gz below it")
    for key, bands in found.items():
        lacking = [band for band in BANDS if band not in bands]
        if lacking:
            where = next(iter(bands.values())).parent
            raise BadInput(
                f"{where}: run {key[0]} camcol {key[1]} field {key[2]} lacks its {', '.join(lacking)} frame: "
                "all of u, g, r, i, z are needed"
            )
    return [FrameSet(*key, tuple(found[key][band] for band in BANDS)) for key in sorted(found)]


def _in_frame(frame: Frame, table: Objects) -> list[int]:
    """Rows of the table whose position lies on the frame."""
    ra0, dec0 = frame.wcs.wcs.crval
    # A tangent plane has no place for the other half of the sky: only what is near is projected.
    near = np.flatnonzero(separation(table.ra, table.dec, float(ra0), float(dec0)) < _FAR)
    height, width = frame.image.shape
    inside = []
    for k, (x, y) in zip(near, _pixels(frame, table.ra[near], table.dec[near]), strict=True):
        if -0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5:
            inside.append(int(k))
    return inside


def _grids(frame: Frame, ra: Floats, dec: Floats, stamp: int) -> list[tuple[Floats, Floats]]:
    """Pixel positions x, y (stamp, stamp) of the stamps centred on these positions of the sky."""
    along_y, along_x = np.mgrid[:stamp, :stamp] - (stamp - 1) / 2
    return [(x + along_x, y + along_y) for x, y in _pixels(frame, ra, dec)]


def _sky_sigma(frame: Frame, x: float, y: float) -> float:
    sigma = sky_sigma(frame, x, y)
    if not sigma > 0:
        raise BadInput(f"{frame.path}: no noise around x = {x:.0f}, y = {y:.0f}: is this a sky image?")
    return sigma


def _pixels(frame: Frame, ra: Floats, dec: Floats) -> Floats:
    """Pixel positions (N, 2) as x, y."""
    if not len(ra):
        return np.zeros((0, 2))
    return np.stack(frame.wcs.wcs_world2pix(ra, dec, 0), axis=1)


def _carried(source: Frame, target: Frame, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The target's pixel positions of the sky that the source has at these."""
    ra, dec = source.wcs.wcs_pix2world(x.ravel(), y.ravel(), 0)
    tx, ty = target.wcs.wcs_world2pix(ra, dec, 0)
    return tx.reshape(x.shape), ty.reshape(y.shape)


def _finish(skipped: list[dict[str, Any]], table: Objects, taken: set[int]) -> None:
    """Drop entries of objects that another field of the run gave after all; add those that no frame saw."""
    skipped[:] = [one for one in skipped if one["object_id"] * RUNS + one["run"] not in taken]
    seen = {one // RUNS for one in taken} | {one["object_id"] for one in skipped}
    for object_id in table.object_id.tolist():
        if object_id not in seen:
            skipped.append({"object_id": object_id, "run": None, "reason": "outside every frame"})


def _report(skipped: list[dict[str, Any]], stamps: int) -> None:
    if skipped:
        outside = sum(one["run"] is None for one in skipped)
        print(
            f"{stamps} stamps; skipped {len(skipped)}: {outside} outside every frame, "
            f"{len(skipped) - outside} too near an edge (listed in the manifest's provenance)",
            file=sys.stderr,
        )
