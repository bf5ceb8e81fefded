"""Mean and variance of each band, merged over shards."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcphotoz.data.format.manifest_schema import BandStatistics
from hpcphotoz.data.format.stamps import Stamps

_ROWS = 128  # added at a time: 21 MB of float64 for stamps of 64 x 64 x 5


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

    def add(self, stamps: Stamps) -> None:
        """Add objects, `_ROWS` at a time: in float64 a whole shard would take eight times its bytes."""
        for start in range(0, len(stamps), _ROWS):
            some = stamps[start : start + _ROWS]
            x = some.images.astype(np.float64).transpose(1, 0, 2, 3).reshape(len(self.mean), -1)
            part = BandMoments(len(self.mean))
            part.pixels, part.objects, part.mean = x.shape[1], len(some), x.mean(axis=1)
            part.m2 = ((x - part.mean[:, None]) ** 2).sum(axis=1)
            part.sky = some.sky_sigma.astype(np.float64).sum(axis=0)
            self.merge(part)

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
        moments.pixels, moments.objects = record["pixels"], record["objects"]
        for name in ("mean", "m2", "sky"):
            setattr(moments, name, np.array(record[name], np.float64))
        return moments

    def result(self) -> BandStatistics:
        """Statistics of all objects added so far."""
        std = np.sqrt(self.m2 / max(self.pixels, 1))
        sky = self.sky / max(self.objects, 1)
        return BandStatistics(tuple(self.mean.tolist()), tuple(std.tolist()), tuple(sky.tolist()))
