"""A rank's slice of a global batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A rank's slice of a global batch; it may be empty where the batch is smaller than the world."""

    images: Tensor  # (n, B, y, x) as stored: float32 or float16 nMgy, or int16 in units of image_unit
    z_spec: Tensor  # (n,) float32
    ebv: Tensor  # (n,) float32, mag
    object_id: Tensor  # (n,) int64
    sky_sigma: Tensor  # (n, B) float32, nMgy
    position: Tensor  # (n,) int64: place in the global batch
    size: int  # objects in the global batch
    index: int  # number of the global batch in its epoch
    image_unit: Tensor | None = None  # (n, B) float32 nMgy (negative: see `encoding`); None: images are nMgy
    skipped: int = 0  # damaged objects of this slice that were left out
