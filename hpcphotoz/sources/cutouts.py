"""Cuts stamps of objects out of calibrated frames.

The frames of one run, camera column and field, one a band, are a frame set. A stamp has the orientation and
scale of the set's r frame (TAN, 0.396"/px), and its centre, the pixel position (S - 1)/2, is on the object.
Every band is resampled onto this grid by Lanczos-3, the r band by a fraction of a pixel. No background beyond
the frame's own sky is subtracted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import UnitStamps
from hpcphotoz.sources.noise import frame_sky_sigma
from hpcphotoz.sources.surveys.frame import Floats, Frame, Geometry, resample
from hpcphotoz.sources.surveys.sdss import BAD_PLANES, MaskFlags, read_dr8_frame, read_fpc, read_mask
from hpcphotoz.sources.surveys.sdss_plan import CutoutList

_READERS = {"fpC": read_fpc, "frame": read_dr8_frame}


@dataclass(frozen=True)
class CutStamps:
    """Makes the stamps of a unit. Each frame is read once, and one is in memory at a time."""

    bands: tuple[str, ...]
    reference: int  # index of the band whose grid the stamps have
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
            mask = cutout_list.frame_set.masks[b]
            flags = None if mask is None else read_mask(mask, frame.geometry.shape)
            base = base or frame.geometry
            scale = base.pixel_area / frame.geometry.pixel_area
            name = f"the {self.bands[b]} frame of {cutout_list.frame_set.name}"
            centres, jacobians = project(base, frame.geometry, objects.ra, objects.dec, self.stamp / 2)
            for k in range(count):
                if k in reasons:
                    continue
                x, y = stamp_grid(centres[k], jacobians[k], self.stamp)
                reason = self._skip_reason(frame, flags, x, y)
                if reason is None:
                    images[k, b] = resample(frame, x, y) * scale
                    at_x, at_y = centres[k]
                    sky = frame_sky_sigma(frame.image, at_x, at_y)
                    if not sky > 0:
                        at = f"x = {at_x:.0f}, y = {at_y:.0f}"
                        raise BadInput(f"{frame.path}: no noise around {at}: is this a sky image?")
                    sigma[k, b] = sky * scale
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

    def _skip_reason(self, frame: Frame, flags: MaskFlags | None, x: Floats, y: Floats) -> str | None:
        """Returns why the stamp at these positions is not cut; None: it is cut."""
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


def project(
    source: Geometry, target: Geometry, ra: Floats, dec: Floats, half: float
) -> tuple[Floats, Floats]:
    """Projects ra, dec (N,) deg into the target frame, with the Jacobian from the source's pixels.

    Over a stamp the projection is so nearly linear that central differences over its width are right to
    1e-4 px at its corners, for 64 pixels and tangent points a degree apart.

    `half` is half a stamp's width, pixels. The result is x, y in the target (N, 2), and the Jacobian
    d(target x, y)/d(source x, y) (N, 2, 2).
    """
    xy = source.pixels(ra, dec)
    steps = [
        (target.pixels(*source.sky(xy + step).T) - target.pixels(*source.sky(xy - step).T)) / (2 * half)
        for step in half * np.eye(2)
    ]
    return target.pixels(ra, dec), np.stack(steps, axis=-1)


def stamp_grid(centre: Floats, jacobian: Floats, stamp: int) -> tuple[Floats, Floats]:
    """Returns the positions x, y (stamp, stamp) of a stamp's pixels in a frame, from `project`'s results."""
    along_y, along_x = np.mgrid[:stamp, :stamp] - (stamp - 1) / 2
    return (
        centre[0] + jacobian[0, 0] * along_x + jacobian[0, 1] * along_y,
        centre[1] + jacobian[1, 0] * along_x + jacobian[1, 1] * along_y,
    )
