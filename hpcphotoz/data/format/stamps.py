"""Images and labels of objects in memory, the columns of a shard, and the moments of their pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest_schema import BandStatistics

Array = npt.NDArray[Any]
_ROWS = 128  # added to moments at a time: 4 MB of float64 a band of stamps of 64 x 64


@dataclass(frozen=True)
class Stamps:
    """Images and labels of N objects."""

    images: Array  # (N, band, y, x) float32, nanomaggies
    z_spec: Array  # (N,) float32, NaN: unknown
    ebv: Array  # (N,) float32, mag
    object_id: Array  # (N,) int64
    sky_sigma: Array  # (N, band) float32, nanomaggies per pixel
    ra: Array  # (N,) float64, deg
    dec: Array  # (N,) float64, deg
    extra: Mapping[str, Array] = field(default_factory=dict)  # (N, ...) by name, see `ExtraColumn`

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Array) -> "Stamps":
        extra = {name: values[rows] for name, values in self.extra.items()}
        return Stamps(**{name: getattr(self, name)[rows] for name in COLUMNS}, extra=extra)

    @classmethod
    def concatenate(cls, parts: "list[Stamps]") -> "Stamps":
        """All parts, one after the other.

        Raises:
            ValueError: parts with different extra columns.
        """
        names = parts[0].extra.keys() if parts else ()
        if any(part.extra.keys() != names for part in parts):
            raise ValueError("parts with different extra columns")
        extra = {name: np.concatenate([part.extra[name] for part in parts]) for name in names}
        found = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return cls(**found, extra=extra)


def redshift_range(z_spec: Array) -> tuple[float | None, float | None, int]:
    """Smallest and largest known redshift (None: none is known), and the number of unknown ones (NaN)."""
    known = z_spec[np.isfinite(z_spec)]
    ends = (float(known.min()), float(known.max())) if len(known) else (None, None)
    return *ends, len(z_spec) - len(known)


COLUMNS = {
    "images": np.float32,
    "z_spec": np.float32,
    "ebv": np.float32,
    "object_id": np.int64,
    "sky_sigma": np.float32,
    "ra": np.float64,
    "dec": np.float64,
}

assert {one.name for one in fields(Stamps)} == {*COLUMNS, "extra"}


class BandMoments:
    """Band means and variances in float64, merged batch by batch (Chan, Golub & LeVeque 1979)."""

    def __init__(self, bands: int) -> None:
        self.pixels, self.objects = 0, 0
        self.mean, self.m2, self.sky = np.zeros(bands), np.zeros(bands), np.zeros(bands)

    @classmethod
    def of(cls, stamps: Stamps) -> "BandMoments":
        """Moments of these objects."""
        moments = cls(stamps.images.shape[1])
        moments.add(stamps)
        return moments

    @classmethod
    def from_statistics(cls, statistics: BandStatistics, rows: int, stamp: int) -> "BandMoments":
        """Moments of `rows` images of `stamp` pixels a side, right to a few units in the last place.

        A standard deviation is a square root that has been rounded, and a mean a quotient.
        """
        moments = cls(len(statistics.mean))
        moments.pixels, moments.objects = rows * stamp**2, rows
        moments.mean = np.array(statistics.mean)
        moments.m2 = np.array(statistics.std) ** 2 * moments.pixels
        moments.sky = np.array(statistics.sky_sigma) * rows
        return moments

    def add(self, stamps: Stamps) -> None:
        """Add objects, `_ROWS` at a time: in float64 a whole shard would take eight times its bytes."""
        for start in range(0, len(stamps), _ROWS):
            self.merge(_moments(stamps[start : start + _ROWS]))

    def merge(self, other: "BandMoments") -> None:
        """Add another's objects; merged in the order of the shards, the result is the same to the bit."""
        if not other.pixels:
            return
        delta, total = other.mean - self.mean, self.pixels + other.pixels
        self.m2 += other.m2 + delta**2 * self.pixels * other.pixels / total
        self.mean += delta * other.pixels / total
        self.sky += other.sky
        self.pixels, self.objects = total, self.objects + other.objects

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON keeps exactly."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "m2", "sky")}
        return {"pixels": self.pixels, "objects": self.objects, **arrays}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "BandMoments":
        """Restore from what `to_json` returned."""
        moments = cls(len(record["mean"]))
        for name, value in record.items():
            setattr(moments, name, np.array(value) if isinstance(value, list) else value)
        return moments

    def result(self) -> BandStatistics:
        """Statistics of all objects added so far."""
        std = np.sqrt(self.m2 / max(self.pixels, 1))
        sky = self.sky / max(self.objects, 1)
        return BandStatistics(tuple(self.mean.tolist()), tuple(std.tolist()), tuple(sky.tolist()))


def _moments(stamps: Stamps) -> BandMoments:
    """Moments of a few objects, band by band: 41 us a stamp of 64 x 64 x 5; of all bands at once, 117."""
    n, bands, *size = stamps.images.shape
    found, x = BandMoments(bands), np.empty((n, *size))
    found.pixels, found.objects = x.size, n
    for band in range(bands):
        x[...] = stamps.images[:, band]
        found.mean[band] = x.mean()
        x -= found.mean[band]
        found.m2[band] = np.square(x, out=x).sum()
    found.sky = stamps.sky_sigma.astype(np.float64).sum(axis=0)
    return found
