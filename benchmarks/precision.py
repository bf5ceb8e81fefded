"""The precision that a device chooses for itself, which benchmarks run beside float32."""

import torch

from hpcphotoz.config import parse
from hpcphotoz.training.speed import speed_of

AUTOCAST = {"bf16": torch.bfloat16, "fp32": None}


def chosen(device: torch.device) -> str:
    """What `training.precision = "auto"` stands for on a device: bf16 or fp32."""
    dtype = speed_of(parse({}, "benchmark").training, device).training
    return next(name for name, autocast in AUTOCAST.items() if autocast == dtype)
