"""Images and labels of objects in memory, the columns of a shard."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Array) -> "Stamps":
        return Stamps(**{name: getattr(self, name)[rows] for name in COLUMNS})

    @classmethod
    def concatenate(cls, parts: "list[Stamps]") -> "Stamps":
        """All parts, one after the other."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})


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

assert {field.name for field in fields(Stamps)} == set(COLUMNS)
