"""The precision of a network's passes, and which one a device computes quickest: measured, not assumed.

fp32   float32; on a GPU without TF32, which cuDNN would otherwise use unasked
tf32   float32 whose products are rounded to TF32 (10 bits), on NVIDIA GPUs from compute capability 8.0
       on; on other devices the same as fp32
bf16   convolutions and matrix products in bfloat16 (autocast); parameters and updates stay float32
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "tf32", "bf16"]
MIN_BF16_SPEEDUP = 1.1  # times as fast as float32 that bfloat16 must be: below that, a trial's noise
_ROUNDS, _ROUNDS_ON_CPU = 3, 5
_GIVE_UP_SLOWDOWN = 3.0  # times as slow: no further round would change the choice


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype that autocast is asked for; None: no autocast."""
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products of a GPU; put back at the end."""
    # These two setters, and not fp32_precision: mixed with the older ones, its getters raise an error, and a
    # user's torch.set_float32_matmul_precision is an older one.
    was = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = was


@contextmanager
def cudnn_benchmark(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose the quickest algorithm of each shape by trying all; put back at the end."""
    was = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = was


def time_call(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the least of a few after one to warm up."""
    best = float("inf")
    for number in range(_ROUNDS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            best = min(best, time.perf_counter() - start)
    return best


@cache
def bfloat16_speedup() -> float:
    """How many times faster this process's CPU computes convolutions in bfloat16 than in float32.

    Measured on two small convolutions, forwards and backwards, once a process (0.05 s; 0.3 s without
    bfloat16 units). Flags of the processor do not tell: oneDNN may be kept from using a unit
    (ONEDNN_MAX_CPU_ISA), and with `avx512_bf16` but without `amx_bf16` an Intel Xeon took 1.7 times as long
    in bfloat16, where with both it took 0.4 of the time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1))
        images = torch.randn(8, 48, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def passes(low: bool) -> None:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            out: Tensor = layers(images)
        torch.autograd.grad(out.float().sum(), [images, *layers.parameters()])

    best, threads = {False: float("inf"), True: float("inf")}, torch.get_num_threads()
    # One thread, and its processor time instead of the clock's: threads that wait for each other on a busy
    # machine made bfloat16 look slow in one trial of three.
    torch.set_num_threads(1)
    try:
        for number in range(_ROUNDS_ON_CPU + 1):
            for low in best:
                start = time.process_time()
                passes(low)
                if number:  # the first call chooses algorithms and makes code
                    best[low] = min(best[low], time.process_time() - start)
            if number > 1 and best[True] > _GIVE_UP_SLOWDOWN * best[False]:
                break
    finally:
        torch.set_num_threads(threads)
    return best[False] / best[True]


def quickest_on_cpu(speedup: float) -> tuple[Precision, str]:
    """The precision for a CPU that computes bfloat16 so many times faster than float32; and the reason."""
    how = f"{speedup:.1f} times as fast" if speedup >= 1 else f"{1 / speedup:.1f} times slower"
    return "bf16" if speedup >= MIN_BF16_SPEEDUP else "fp32", f"measured: convolutions in bf16 are {how} here"


def bf16_warning(precision: str, speedup: float, instead: str = "want auto or fp32") -> str | None:
    """What bfloat16 costs on a CPU without units for it, in one line; None: nothing.

    Args:
        precision: what is computed in.
        speedup: of `bfloat16_speedup`.
        instead: what the user can do.
    """
    if precision != "bf16" or speedup >= 1:
        return None
    return (
        f"bf16 on this CPU: convolutions take {1 / speedup:.1f} times as long as in fp32 (measured), "
        f"for it has no bfloat16 matrix units: {instead}"
    )
