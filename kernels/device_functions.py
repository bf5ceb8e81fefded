"""Triton functions and launch arguments that several kernels share."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcphotoz.kernels import checks

_WARP = 64 if torch.version.hip else 32  # threads of a warp
_HUGE = tl.constexpr(3.4028234663852886e38)


@triton.jit
def clamp(x, low, high):  # type: ignore[no-untyped-def]
    # As torch.maximum and torch.minimum: NaN stays NaN. By default Triton returns the bound instead.
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def finite(x):  # type: ignore[no-untyped-def]
    # As torch.nan_to_num: NaN becomes 0, an infinity the largest number.
    return tl.minimum(tl.maximum(tl.where(x == x, x, 0.0), -_HUGE), _HUGE)


@triton.jit  # type: ignore[untyped-decorator]
def may_change(mask, at, inside, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    if MASKED:
        inside = tl.load(mask + at, inside, 0) != 0
    return inside


@triton.jit  # type: ignore[untyped-decorator]
def copy_unchanged(out, adv, base, count, between, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    # `count` pixels of an inactive object, `between` apart in memory.
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        at = base + i.to(tl.int64) * between
        tl.store(out + at, tl.load(adv + at, i < count), i < count)


def warps(block: int, pixels: int) -> int:
    """Warps of a program in which each thread has `pixels` pixels of a block: at most 1024 threads."""
    return max(1, min(1024, block // pixels) // _WARP)


def step_arguments(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None,
    active: Tensor | None,
) -> tuple[tuple[Tensor | int, ...], dict[str, Any]]:
    """Arguments that the kernels of `l2` and `flux` share: those after `out`, and the constants.

    A kernel does not read a tensor that is None; `x0` takes its place in the list.
    """
    optional = (x0 if tensor is None else tensor for tensor in (mask, active))
    tensors = (adv, x0, x0 if grad is None else grad, eps, step, lo, hi, *optional)
    constants = {
        "BANDS": int(x0.shape[1]),
        "PIXELS": int(x0.shape[2] * x0.shape[3]),
        "CHANNELS_LAST": checks.is_channels_last(x0),
        "STEPPED": grad is not None,
        "MASKED": mask is not None,
        "FLAGGED": active is not None,
    }
    return (*tensors, *(checks.band_stride(t) for t in (eps, step, lo, hi))), constants
