"""Precisions of a network's passes: contexts that set them, and a trial of which is quickest on a device.

fp32   float32; on a GPU without TF32, which cuDNN uses by default
tf32   float32 whose products are rounded to TF32 (10 bits), on NVIDIA GPUs from compute capability 8.0
       on; on other devices the same as fp32
bf16   convolutions and matrix products in bfloat16 (autocast); parameters and updates stay float32

The trial times two small convolutions on a CPU, and on a GPU the network itself as it runs in training.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor, nn

from hpcphotoz.compute.capture import capture
from hpcphotoz.compute.compiler import compiled as through_compiler
from hpcphotoz.compute.statistics import buffers_kept

Precision = Literal["fp32", "tf32", "bf16"]
MIN_BF16_SPEEDUP = 1.1  # bfloat16 is chosen from this speed-up on: less may be noise of the trial
_ROUNDS_ON_CPU = 5
_GIVE_UP_SLOWDOWN = 3.0  # bfloat16 this many times slower: further rounds cannot change the choice


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
def cudnn_benchmark(device: torch.device, on: bool = True) -> Iterator[None]:
    """Let cuDNN time all algorithms for each shape and use the quickest, if `on`; restored at the end."""
    was = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on and device.type == "cuda"
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


def seconds_of_a_pass(
    module: nn.Module, device: torch.device, shape: tuple[int, ...], *, compiled: bool, graph: bool
) -> dict[str, float]:
    """Seconds of a forward and backward pass in tf32 and in bf16; the module is left as it was.

    Which one is quicker cannot be known beforehand: eagerly on an H200 the Inception trains faster in tf32
    (3,720 images/s) than in bf16 (3,120), whose casts are kernels of their own.

    Args:
        module, device: the network, on a GPU.
        shape: (n, B, H, W), the images of a pass.
        compiled, graph: use torch.compile; capture a pass as a CUDA graph and time its replay.
    """
    images = torch.randn(shape, device=device, generator=torch.Generator(device))
    images = images.contiguous(memory_format=torch.channels_last)
    weights = [p for p in module.parameters() if p.requires_grad]
    forward = through_compiler(module, device) if compiled else module
    ebv = images.new_zeros(len(images))

    def passes(precision: str) -> Tensor:
        low = autocast_dtype(precision)
        with torch.enable_grad(), torch.autocast(device.type, low, enabled=low is not None):
            logits = forward(images, ebv)
        # `backward` would leave gradients in the parameters.
        return torch.autograd.grad(logits.float().logsumexp(1).sum(), weights)[0]

    found = {}
    for name in ("tf32", "bf16"):
        with tf32(name == "tf32"), buffers_kept(module):
            one = partial(passes, name)
            found[name] = time_call(capture(one, device)[0] if graph else one, device)
    return found


@cache
def bfloat16_speedup() -> float:
    """How many times faster this process's CPU computes convolutions in bfloat16 than in float32.

    Measured on two small convolutions, forwards and backwards, once a process (0.05 s; 0.3 s without
    bfloat16 units). The processor's flags are no substitute: ONEDNN_MAX_CPU_ISA can forbid oneDNN to use a
    unit, and an Intel Xeon with `avx512_bf16` but without `amx_bf16` took 1.7 times as long in bfloat16,
    where with both it took 0.4 of the time.
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
    # One thread, and its processor time instead of the wall clock: on a busy machine, threads that wait for
    # each other made bfloat16 look slow in one trial of three.
    torch.set_num_threads(1)
    try:
        for number in range(_ROUNDS_ON_CPU + 1):
            for low in best:
                start = time.process_time()
                passes(low)
                if number:  # the first call chooses algorithms and generates code
                    best[low] = min(best[low], time.process_time() - start)
            if number > 1 and best[True] > _GIVE_UP_SLOWDOWN * best[False]:
                break
    finally:
        torch.set_num_threads(threads)
    return best[False] / best[True]


def quickest_on_cpu(speedup: float) -> tuple[Precision, str]:
    """Choose the precision for a CPU from its measured bfloat16 speed-up; returns it and the reason."""
    how = f"{speedup:.1f} times as fast" if speedup >= 1 else f"{1 / speedup:.1f} times slower"
    return "bf16" if speedup >= MIN_BF16_SPEEDUP else "fp32", f"measured: convolutions in bf16 are {how} here"


def bf16_warning(precision: str, speedup: float, instead: str = "want auto or fp32") -> str | None:
    """Warning that bfloat16 is slow on this CPU, and what to do `instead`, one line; None where it is not."""
    if precision != "bf16" or speedup >= 1:
        return None
    return (
        f"bf16 on this CPU: convolutions take {1 / speedup:.1f} times as long as in fp32 (measured), "
        f"for it has no bfloat16 matrix units: {instead}"
    )


def precision_of_attacks(
    asked: str,
    module: nn.Module,
    device: torch.device | str,
    shape: tuple[int, ...],
    what: str = "gradients of attacks",
) -> tuple[str, str]:
    """Choose the precision of attacks on, or of other passes of, a trained network that is on the device.

    Args:
        asked: "auto" or a precision.
        module, device: the network, and where the attacks run.
        shape: (n, B, H, W), the images of a pass.
        what: is computed so, for the line.

    Returns:
        The precision, and one line that says why or what it costs; "": nothing to say.
    """
    device = torch.device(device)
    if device.type != "cuda":
        found, why = quickest_on_cpu(bfloat16_speedup())
        if asked != "auto":
            slow = bf16_warning(asked, bfloat16_speedup())
            return asked, f"warning: {slow}" if slow else ""
        return found, f"{what} in {found} ({why})"
    if asked != "auto":
        return asked, ""
    if not has_tf32(device):
        return "fp32", f"{what} in fp32 (no units for tf32 and bf16)"
    seconds = seconds_of_a_pass(module, device, shape, compiled=False, graph=False)
    found, why = quicker_precision(seconds, shape[0])
    return found, f"{what} in {found} ({why})"


def quicker_precision(seconds: dict[str, float], n: int) -> tuple[Precision, str]:
    """The quicker precision of `seconds_of_a_pass` over n images, and the measured times in words."""
    both = ", ".join(f"{1e3 * took:.3g} ms in {name}" for name, took in seconds.items())
    found: Precision = "bf16" if seconds["bf16"] < seconds["tf32"] else "tf32"
    return found, f"measured: a pass over {n} images takes {both}"


def has_tf32(device: torch.device) -> bool:
    """Whether a GPU has units for TF32 and bfloat16."""
    return torch.cuda.get_device_capability(device) >= (8, 0)
