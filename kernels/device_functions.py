"""Triton functions that several kernels share."""

import torch
import triton
import triton.language as tl

_WARP = 64 if torch.version.hip else 32  # threads of a warp
_HUGE = tl.constexpr(3.4028234663852886e38)


@triton.jit
def clamp(x, low, high):  # type: ignore[no-untyped-def]
    # As torch.maximum and torch.minimum: NaN stays NaN. By default Triton returns the bound instead.
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sign(g):  # type: ignore[no-untyped-def]
    # NaN compares false twice: zero.
    return tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))


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
