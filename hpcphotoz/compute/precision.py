"""Precisions of a network's passes: contexts that set them, and the time of a call.

fp32   float32; on a GPU without TF32, which cuDNN uses by default
tf32   float32 whose products are rounded to TF32 (10 bits), on NVIDIA GPUs from compute capability 8.0
       on; on other devices the same as fp32
bf16   convolutions and matrix products in bfloat16 (autocast); parameters and updates stay float32
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype for autocast; None: no autocast."""
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products on a GPU; restored at the end."""
    # Not `fp32_precision`: its getters raise an error where one of the older setters was called too, such as
    # a user's torch.set_float32_matmul_precision.
    was = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = was


@contextmanager
def cudnn_benchmark(device: torch.device) -> Iterator[None]:
    """Let cuDNN time all algorithms for each shape and use the quickest; restored at the end."""
    was = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = was


def time_call(call: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """Seconds of a call: the shortest of `rounds`, after one call to warm up."""
    best = float("inf")
    for number in range(rounds + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            best = min(best, time.perf_counter() - start)
    return best
