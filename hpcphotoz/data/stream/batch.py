"""A rank's slice of a global batch."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.data.format.manifest import Header, columns


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
    random_key: Tensor | None = None  # (n,) int64: keys the objects' random numbers; None: object_id does
    skipped: int = 0  # damaged objects of this slice that were left out


def empty_batch(header: Header) -> Batch:
    """An empty batch, for a rank that takes part in a step without objects."""
    tensors: dict[str, Any] = {
        name: torch.from_numpy(np.empty((0, *row), dtype))
        for name, (row, dtype) in columns(replace(header, extra=())).items()
        if name not in ("ra", "dec")
    }
    return Batch(**tensors, position=torch.zeros(0, dtype=torch.int64), size=0, index=0)
