"""Cuts stamps of objects out of calibrated frames.

The frames of one place, one a band, are a frame set. A stamp has the pixel grid of the set's reference frame
around the object: over a stamp this is a TAN projection with the orientation and the pixel area that the
frame has there, distortion included. The stamp's centre, the pixel position (S - 1)/2, is on the object.
Every band is resampled onto this grid by Lanczos-3, the reference band by a fraction of a pixel, and flux is
kept: a pixel is multiplied by the ratio of the two pixel areas. No background beyond the frame's own sky is
subtracted.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import pack_mask
from hpcphotoz.data.format.stamps import Array, Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import UnitStamps
from hpcphotoz.sources.engine.damage import damage_entry
from hpcphotoz.sources.noise import SKY_BOX_HALF_WIDTH
from hpcphotoz.sources.surveys.fits import Window
from hpcphotoz.sources.surveys.frame import LANCZOS_ORDER, Floats, Frame, Geometry, resample
from hpcphotoz.sources.surveys.plan import CutoutList, skipped_object
from hpcphotoz.sources.surveys.survey import Survey, load_survey

_WHOLE = 1 << 25  # pixels, 134 MB in float32: larger frames are read in strips of as many


@dataclass(frozen=True)
class CutStamps:
    """Makes the stamps of a unit. One frame, or one strip of a large frame, is in memory at a time."""

    survey: str
    bands: tuple[str, ...]
    reference: int  # index of the band whose grid the stamps have
    stamp: int  # pixels a side
    masked_fraction: float
    extra: tuple[str, ...] = ()  # columns taken from the frames: of psf_fwhm, variance, mask
    damaged: str = field(default="fail", compare=False)  # of DAMAGED; finished shards stay, whatever it is

    def __call__(self, unit: Any) -> UnitStamps:
        """Returns a unit's stamps, and the objects that could not be cut, each with the reason."""
        survey = load_survey(self.survey)
        kept: list[Stamps] = []
        skipped: list[dict[str, Any]] = []
        for cutout_list in unit:
            try:
                done = [self._cut(survey, strip) for strip in self._strips(survey, cutout_list)]
            except BadInput as error:
                one = cutout_list.frame_set
                skipped.append(damage_entry(self.damaged, one.name, error, len(cutout_list.objects)))
                continue
            kept += [stamps for stamps, _ in done if len(stamps)]
            skipped += [entry for _, entries in done for entry in entries]
        return UnitStamps(Stamps.concatenate(kept) if kept else None, tuple(skipped))

    def _strips(self, survey: Survey, cutout_list: CutoutList) -> list[CutoutList]:
        """Returns the list itself, or, for large frames, one for each strip of rows in which objects lie."""
        if not survey.windows:
            return [cutout_list]
        objects = cutout_list.objects
        geometry = survey.read_geometry(cutout_list.frame_set.files[self.reference])
        rows = _WHOLE // geometry.shape[1]
        if geometry.shape[0] <= rows:
            return [cutout_list]
        strip = geometry.pixels(objects.ra, objects.dec)[:, 1] // rows
        mine = [np.flatnonzero(strip == number) for number in np.unique(strip)]
        return [replace(cutout_list, objects=objects[m], stamp_id=cutout_list.stamp_id[m]) for m in mine]

    def _cut(self, survey: Survey, cutout_list: CutoutList) -> tuple[Stamps, list[dict[str, Any]]]:
        objects, count = cutout_list.objects, len(cutout_list.objects)
        images = np.zeros((count, len(self.bands), self.stamp, self.stamp), np.float32)
        sigma = np.zeros((count, len(self.bands)), np.float32)
        extra = self._empty_extra(count)
        reasons: dict[int, str] = {}
        order = sorted(range(len(self.bands)), key=lambda b: b != self.reference)
        base: Geometry | None = None
        for b in order:
            frame = self._read(survey, cutout_list, b)
            base = base or frame.geometry
            name = f"the {self.bands[b]} frame of {cutout_list.frame_set.name}"
            centres, jacobians = project(base, frame.geometry, objects.ra, objects.dec, self.stamp / 2)
            scales = area_ratios(base, frame.geometry, jacobians)
            for k in range(count):
                if k in reasons:
                    continue
                x, y = stamp_grid(centres[k], jacobians[k], self.stamp)
                reason = self._skip_reason(survey, frame, x, y)
                if reason is None:
                    images[k, b] = resample(frame, x, y) * scales[k]
                    sigma[k, b] = frame.sky_sigma(*centres[k]) * scales[k]
                    if "psf_fwhm" in extra:
                        extra["psf_fwhm"][k, b] = frame.psf_fwhm_at(*centres[k])
                    if "variance" in extra and frame.variance is not None:
                        variance = frame.variance[_nearest(x, y)] * scales[k] ** 2
                        extra["variance"][k, b] = stored_variance(variance)
                    if "mask" in extra and frame.flags is not None:
                        extra["mask"][k, b] = frame.flags[_nearest(x, y)] != 0
                    if not np.isfinite(images[k, b]).all():
                        reason = "a pixel is not finite in"
                if reason is not None:
                    reasons[k] = f"{reason} {name}"
        kept = np.array([k not in reasons for k in range(count)])
        good = objects[np.flatnonzero(kept)]
        extra = {name: values[kept] for name, values in extra.items()}
        if "mask" in extra:
            extra["mask"] = pack_mask(extra["mask"])
        stamps = Stamps(
            images=images[kept],
            z_spec=good.z_spec.astype(np.float32),
            ebv=good.ebv.astype(np.float32),
            object_id=cutout_list.stamp_id[kept],
            sky_sigma=sigma[kept],
            ra=good.ra,
            dec=good.dec,
            extra={**good.extra, **extra},
        )
        ids = objects.object_id.tolist()
        return stamps, [skipped_object(ids[k], cutout_list.frame_set, reasons[k]) for k in sorted(reasons)]

    def _empty_extra(self, count: int) -> dict[str, Array]:
        """Returns extra columns that hold nothing yet: NaN, and no pixel masked."""
        per_band = count, len(self.bands)
        pixels = *per_band, self.stamp, self.stamp
        empty: dict[str, tuple[tuple[int, ...], float, type]] = {
            "psf_fwhm": (per_band, np.nan, np.float32),
            "variance": (pixels, np.nan, np.float16),
            "mask": (pixels, 0, np.bool_),
        }
        return {name: np.full(*empty[name]) for name in self.extra}

    def _read(self, survey: Survey, cutout_list: CutoutList, b: int) -> Frame:
        files = cutout_list.frame_set.files[b]
        window = None
        if survey.windows:
            objects = cutout_list.objects
            margin = self.stamp + LANCZOS_ORDER + SKY_BOX_HALF_WIDTH
            window = _window(survey.read_geometry(files), objects.ra, objects.dec, margin)
        return survey.read(files, window)

    def _skip_reason(self, survey: Survey, frame: Frame, x: Floats, y: Floats) -> str | None:
        """Returns why the stamp at these positions is not cut; None: it is cut."""
        if not frame.holds(x, y):
            return "stamp crosses the edge of"
        if frame.flags is None:
            return None
        near = frame.flags[_nearest(x, y)]
        masked = np.count_nonzero(near) / near.size
        if masked <= self.masked_fraction:
            return None
        per_plane = [np.count_nonzero(near & (1 << k)) for k in range(len(survey.planes))]
        return f"{100 * masked:.2g} % of the stamp masked ({survey.planes[int(np.argmax(per_plane))]}) in"


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


def area_ratios(source: Geometry, target: Geometry, jacobians: Floats) -> Floats:
    """Returns the area of the source's pixel in pixels of the target (N,), at each place of `project`."""
    if not (source.distorted or target.distorted):
        return np.full(len(jacobians), source.pixel_area / target.pixel_area)
    return np.asarray(np.abs(np.linalg.det(jacobians)))


def stamp_grid(centre: Floats, jacobian: Floats, stamp: int) -> tuple[Floats, Floats]:
    """Returns the positions x, y (stamp, stamp) of a stamp's pixels in a frame, from `project`'s results."""
    along_y, along_x = np.mgrid[:stamp, :stamp] - (stamp - 1) / 2
    return (
        centre[0] + jacobian[0, 0] * along_x + jacobian[0, 1] * along_y,
        centre[1] + jacobian[1, 0] * along_x + jacobian[1, 1] * along_y,
    )


def stored_variance(variance: Floats) -> npt.NDArray[np.float16]:
    """Converts variances, nanomaggies^2, to float16, NaN where they are not positive.

    What float16 rounds to 0 becomes its smallest number, 6e-8: a variance of 0 would be an infinite weight.
    Beyond its largest number, 65504, they are infinite.
    """
    with np.errstate(over="ignore"):
        rounded = np.maximum(variance.astype(np.float16), np.finfo(np.float16).smallest_subnormal)
    return np.where(variance > 0, rounded, np.float16(np.nan))


def _nearest(x: Floats, y: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Returns rows and columns of the pixels in which positions lie."""
    return np.rint(y).astype(np.intp), np.rint(x).astype(np.intp)


def _window(geometry: Geometry, ra: Floats, dec: Floats, margin: int) -> Window | None:
    """Returns the part of a large frame that objects need; None: the whole frame."""
    if geometry.shape[0] * geometry.shape[1] <= _WHOLE:
        return None
    xy = geometry.pixels(ra, dec)
    xy = xy[np.isfinite(xy).all(axis=1)]
    if not len(xy):
        return None
    low, high = np.floor(xy.min(axis=0)) - margin, np.ceil(xy.max(axis=0)) + margin + 1
    stops = np.minimum(high, geometry.shape[::-1]).astype(int)
    starts = np.minimum(np.maximum(low, 0), stops - 1).astype(int)
    (x0, y0), (x1, y1) = starts.tolist(), stops.tolist()
    return slice(y0, y1), slice(x0, x1)
