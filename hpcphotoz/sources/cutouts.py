"""SDSS frames plus an object table in, a dataset of stamps out.

The bands of a run, camera column and field are one frame set. A stamp has the orientation and scale of the
set's r frame (TAN, 0.396"/px), which moves the sky by no more than the survey's drift between bands, and its
centre (pixel position (S - 1)/2) is on the object. The other bands are resampled onto it by Lanczos-3; the r
band too, by the fraction of a pixel that centring takes. No background beyond the frame's own sky is
subtracted.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.folder import check_dataset_folder
from hpcphotoz.data.format.shards import Header, Manifest, Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import UnitStamps, build, count_skipped
from hpcphotoz.sources.catalogue import read_catalogue
from hpcphotoz.sources.identifiers import RULE
from hpcphotoz.sources.mpi import mpi_ranks
from hpcphotoz.sources.redshifts import EBV_UNKNOWN
from hpcphotoz.sources.surveys import sdss, sdss_dr8
from hpcphotoz.sources.surveys.frame import Floats, Frame, Geometry, resample, sky_sigma
from hpcphotoz.sources.surveys.sdss_fields import (
    BANDS,
    EPOCHS,
    PIXEL_SCALE,
    CutoutList,
    CutoutPlan,
    FrameSet,
    find_frame_sets,
    plan_cutouts,
    report_left_out,
    skipped_entries,
    sky_range,
)
from hpcphotoz.sources.surveys.sdss_masks import BAD_PLANES, read_planes

__all__ = ["BANDS", "MASKED_FRACTION", "PIXEL_SCALE", "FrameSet", "find_frame_sets", "ingest_frames"]

# 20 pixels of 64 x 64: nearly every saturated star has more, and of cosmic rays, which the survey has filled
# in, only the longest do. In an average field it takes 1 to 2 % of places; none at all would take half.
MASKED_FRACTION = 0.005
_REASON_LABELS = {  # a word of the reason: what to call it
    "outside": "outside every frame",
    "edge": "too near an edge",
    "masked": "masked",
    "finite in": "with a pixel that is not finite",
    "E(B-V)": "of unknown E(B-V)",
}
_READERS = {"fpC": sdss.read_frame, "frame": sdss_dr8.read_frame}


def ingest_frames(
    out: Path,
    frames: Path,
    objects: Path,
    *,
    stamp: int = 64,
    shard_rows: int = 1024,
    bands: Sequence[str] = BANDS,
    columns: Mapping[str, str] | None = None,
    masked_fraction: float = MASKED_FRACTION,
    epochs: str = "one",
    storage: str = "float32",
    processes: int | None = None,
) -> Manifest:
    """Cut stamps of a table's objects out of all frame sets below a folder.

    An object is cut from the field in which it lies farthest from the frame's edge. What cannot be cut there,
    since it comes too near an edge or is masked, is listed with the reason in the manifest's provenance and
    reported on standard error; with one epoch, no other is tried for it. A frame set without one of the bands
    is left out and listed, and so is an object of unknown E(B-V); without a column of E(B-V), 0 is stored and
    said. A frame that cannot be read ends the ingest with its name; after it is replaced,
    the same command keeps every finished shard that it is not in.

    Args:
        out: folder to create.
        frames: folder searched at any depth for `fpC-*.fit[.gz]` (DR7), `frame-*.fits[.bz2|.gz]` (DR8 and
            later) and the mask planes of either, `fpM-*.fit[.gz]`.
        objects: CSV, FITS or VOTable, as `read_catalogue` describes.
        stamp: pixels a side.
        shard_rows: stamps a shard at most.
        bands: of u, g, r, i, z, in the order that the images are to have. The stamps' grid is the r frame's,
            or the first band's without r.
        columns: the table's names for object_id, ra, dec, z_spec, ebv, where they differ.
        masked_fraction: largest part of a stamp's pixels, in any one band, that BAD_PLANES may flag.
        epochs: "one": one stamp an object, with the table's `object_id`; "all": one an object and run, with
            ids by `epoch_ids`, which a split by object id takes for different galaxies.
        storage: of the images, as `Header`.
        processes: worker processes; None: one a core.

    Returns:
        The manifest of the finished dataset.

    Raises:
        BadInput: an option out of range, a frame that cannot be read, no set with all bands, a table without
            a column or with a bad value, or no stamp at all.
    """
    bands = tuple(bands)
    reference = bands.index("r") if "r" in bands else 0
    ranks = mpi_ranks()

    def plan_here() -> tuple[CutoutPlan, str | None]:
        _check_options(stamp, shard_rows, bands, masked_fraction, epochs)
        check_dataset_folder(out)
        table = read_catalogue(objects, columns)
        unknown = np.isnan(table.ebv)
        without_ebv = skipped_entries(table.object_id[unknown], EBV_UNKNOWN)
        table = table[np.flatnonzero(~unknown)]
        if not len(table):
            raise BadInput(
                f"{objects}: E(B-V) is known of none of its {len(unknown)} objects: fill the column"
            )
        if table.ebv_column is None:
            print(f"{objects}: has no column of E(B-V): for its objects 0 is stored", file=sys.stderr)
        sets, incomplete = find_frame_sets(frames, bands)
        report_left_out(frames, incomplete, len(sets))
        _report_unmasked(sets)
        plan = plan_cutouts(
            sets, table, reference=reference, stamp=stamp, shard_rows=shard_rows, epochs=epochs
        )
        if not plan.units:
            raise BadInput(
                f"{objects}: none of its {len(table)} objects lies whole in a frame below {frames}: they are "
                f"at {sky_range(table.ra, table.dec)}, the frames at {sky_range(*plan.covered.T)} (deg)"
            )
        if plan.repeated:
            print(_caution(plan.repeated), file=sys.stderr)
        return replace(plan, skipped=(*incomplete, *without_ebv, *plan.skipped)), table.ebv_column

    plan, ebv_column = ranks.on_first_rank(plan_here)
    used = sorted({cutout_list.frame_set for unit in plan.units for cutout_list in unit})
    provenance = {
        "command": "ingest sdss-frames",
        "frame_sets": [f"{one.kind} {one.run}-{one.camcol}-{one.field}" for one in used],
        "objects": objects.name,
        "epochs": epochs,
        "object_id": f"{plan.rule}; {RULE}",
        "ebv": "not in the table: 0" if ebv_column is None else f"column '{ebv_column}'",
        **({"caution": _caution(plan.repeated)} if plan.repeated else {}),
        "resampling": f"Lanczos-3 onto the {bands[reference]} frame's grid",
        "masks": {
            "planes": list(BAD_PLANES),
            "masked_fraction": masked_fraction,
            "frames_without": sum(mask is None for one in used for mask in one.masks),
        },
        "skipped": list(plan.skipped),
    }
    manifest, skipped = build(
        out,
        Header(bands, stamp, PIXEL_SCALE, storage),
        CutStamps(bands, reference, stamp, masked_fraction),
        plan.units,
        provenance=provenance,
        what="cutting stamps, shards",
        processes=processes,
    )
    if ranks.rank == 0:
        _report_skipped(manifest.rows, skipped)
    return manifest


@dataclass(frozen=True)
class CutStamps:
    """Makes the stamps of a unit: one frame in memory at a time, each read once."""

    bands: tuple[str, ...]
    reference: int  # place of the band whose grid the stamps have
    stamp: int  # pixels a side
    masked_fraction: float

    def __call__(self, unit: Any) -> UnitStamps:
        """Returns a unit's stamps, and the objects that could not be cut, each with the reason."""
        done = [self._cut(cutout_list) for cutout_list in unit]
        kept = [stamps for stamps, _ in done if len(stamps)]
        skipped = tuple(entry for _, entries in done for entry in entries)
        return UnitStamps(Stamps.concatenate(kept) if kept else None, skipped)

    def _cut(self, cutout_list: CutoutList) -> tuple[Stamps, list[dict[str, Any]]]:
        objects, count = cutout_list.objects, len(cutout_list.objects)
        images = np.zeros((count, len(self.bands), self.stamp, self.stamp), np.float32)
        sigma = np.zeros((count, len(self.bands)), np.float32)
        reasons: dict[int, str] = {}
        order = sorted(range(len(self.bands)), key=lambda b: b != self.reference)
        base: Geometry | None = None
        for b in order:
            frame = _READERS[cutout_list.frame_set.kind](cutout_list.frame_set.paths[b])
            flags = _mask_flags(cutout_list.frame_set, b, frame.image.shape)
            base = base or frame.geometry
            scale = base.pixel_area / frame.pixel_area
            name = f"the {self.bands[b]} frame of {cutout_list.frame_set.name}"
            centres, jacobians = project(base, frame.geometry, objects.ra, objects.dec, self.stamp / 2)
            for k in range(count):
                if k in reasons:
                    continue
                x, y = stamp_grid(centres[k], jacobians[k], self.stamp)
                reason = self._skip_reason(frame, flags, x, y)
                if reason is None:
                    images[k, b] = resample(frame, x, y) * scale
                    sigma[k, b] = _sky_sigma(frame, *centres[k]) * scale
                    if not np.isfinite(images[k, b]).all():
                        reason = "a pixel is not finite in"
                if reason is not None:
                    reasons[k] = f"{reason} {name}"
        kept = np.array([k not in reasons for k in range(count)])
        good = objects[np.flatnonzero(kept)]
        stamps = Stamps(
            images=images[kept],
            z_spec=good.z_spec.astype(np.float32),
            ebv=good.ebv.astype(np.float32),
            object_id=cutout_list.stamp_id[kept],
            sky_sigma=sigma[kept],
            ra=good.ra,
            dec=good.dec,
        )
        run, ids = cutout_list.frame_set.run, objects.object_id.tolist()
        return stamps, [{"object_id": ids[k], "run": run, "reason": reasons[k]} for k in sorted(reasons)]

    def _skip_reason(self, frame: Frame, flags: "MaskFlags | None", x: Floats, y: Floats) -> str | None:
        """Why the stamp at these positions is not cut, if it is not."""
        if not frame.holds(x, y):
            return "stamp crosses the edge of"
        if flags is None:
            return None
        near = flags[np.rint(y).astype(np.intp), np.rint(x).astype(np.intp)]
        masked = np.count_nonzero(near) / near.size
        if masked <= self.masked_fraction:
            return None
        per_plane = [np.count_nonzero(near & (1 << k)) for k in range(len(BAD_PLANES))]
        return f"{100 * masked:.2g} % of the stamp masked ({BAD_PLANES[int(np.argmax(per_plane))]}) in"


MaskFlags = npt.NDArray[np.uint8]  # (y, x), bit k: plane k of BAD_PLANES


def project(
    source: Geometry, target: Geometry, ra: Floats, dec: Floats, half: float
) -> tuple[Floats, Floats]:
    """Where the target has objects, and how a step in the source's pixels goes there.

    A frame's projection is so nearly linear over a stamp that central differences over its width carry its
    corners to 1e-4 px for 64 pixels and tangent points a degree apart.

    Args:
        source, target: the two frames' geometries.
        ra, dec: (N,) deg.
        half: half a stamp's width, pixels.

    Returns:
        x, y in the target (N, 2), and d(target x, y)/d(source x, y) (N, 2, 2).
    """
    xy = source.pixels(ra, dec)
    steps = [
        (target.pixels(*source.sky(xy + step).T) - target.pixels(*source.sky(xy - step).T)) / (2 * half)
        for step in half * np.eye(2)
    ]
    return target.pixels(ra, dec), np.stack(steps, axis=-1)


def stamp_grid(centre: Floats, jacobian: Floats, stamp: int) -> tuple[Floats, Floats]:
    """Pixel positions x, y (stamp, stamp) of a stamp's pixels in a frame, from what `project` gives."""
    along_y, along_x = np.mgrid[:stamp, :stamp] - (stamp - 1) / 2
    return (
        centre[0] + jacobian[0, 0] * along_x + jacobian[0, 1] * along_y,
        centre[1] + jacobian[1, 0] * along_x + jacobian[1, 1] * along_y,
    )


def _mask_flags(frame_set: FrameSet, b: int, shape: tuple[int, ...]) -> MaskFlags | None:
    path = frame_set.masks[b]
    if path is None:
        return None
    flags = np.zeros(shape, np.uint8)
    for k, mask in enumerate(read_planes(path, (shape[0], shape[1])).values()):
        flags |= mask.astype(np.uint8) << k
    return flags


def _sky_sigma(frame: Frame, x: float, y: float) -> float:
    sigma = sky_sigma(frame, x, y)
    if not sigma > 0:
        raise BadInput(f"{frame.path}: no noise around x = {x:.0f}, y = {y:.0f}: is this a sky image?")
    return sigma


def _check_options(
    stamp: int, shard_rows: int, bands: tuple[str, ...], masked_fraction: float, epochs: str
) -> None:
    if not 4 <= stamp <= 1024:
        raise BadInput(f"stamp {stamp}: must be from 4 to 1024 pixels")
    if shard_rows < 1:
        raise BadInput(f"shard rows {shard_rows}: must be at least 1")
    if not bands or len(set(bands)) < len(bands) or not set(bands) <= set(BANDS):
        raise BadInput(f"bands '{''.join(bands)}': must be some of {''.join(BANDS)}, each once")
    if not 0 <= masked_fraction <= 1:
        raise BadInput(f"masked fraction {masked_fraction:g}: must be from 0 to 1")
    if epochs not in EPOCHS:
        raise BadInput(f"epochs '{epochs}': must be one of {', '.join(EPOCHS)}")


def _report_unmasked(sets: Sequence[FrameSet]) -> None:
    without = sum(any(mask is None for mask in one.masks) for one in sets)
    if without:
        print(
            f"{without} of {len(sets)} frame sets have no fpM mask planes in some band: there, saturated "
            "stars and cosmic rays are not looked for",
            file=sys.stderr,
        )


def _caution(objects: int) -> str:
    return (
        f"{objects} objects lie in several runs, each stamp with an id of its own: a split by object id can "
        "put one galaxy in train and test; ingest training and test objects as datasets of their own, or one "
        "epoch"
    )


def _report_skipped(stamps: int, skipped: Sequence[Mapping[str, Any]]) -> None:
    counts = {
        words: count_skipped([one for one in skipped if what in one["reason"]])
        for what, words in _REASON_LABELS.items()
    }
    if sum(counts.values()):
        named = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
        print(
            f"{stamps} stamps; skipped {sum(counts.values())}: {named} (listed in the manifest's provenance)",
            file=sys.stderr,
        )
