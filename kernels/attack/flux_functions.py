"""Triton functions of the step in the flux-conserving ball: the median of a gradient, the step, the shift.

Definition: `reference.flux`. A plane is the PIXELS pixels of one object and band, `between` apart in memory
from `base` on.
"""

import triton
import triton.language as tl

from hpcphotoz.kernels.device_functions import finite, may_change

_NEVER = tl.constexpr(0x7FFFFFFF)  # rank of a pixel that may not change: that of a NaN, which no gradient has


@triton.jit  # type: ignore[untyped-decorator]
def _rank(grad, mask, base, i, between, PIXELS: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    # The gradient as an int32 in the same order: the bits of a float, those of a negative one turned.
    at = base + i.to(tl.int64) * between
    free = may_change(mask, at, i < PIXELS, MASKED)
    bits = finite(tl.load(grad + at, free, 0.0).to(tl.float32)).to(tl.int32, bitcast=True)
    return tl.where(free, tl.where(bits < 0, bits ^ _NEVER, bits), _NEVER)


@triton.jit  # type: ignore[untyped-decorator]
def lower_median(  # type: ignore[no-untyped-def]
    grad, mask, base, between, PIXELS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr
):
    # The lower median, exactly: the lowest rank that half of the pixels, rounded up, do not exceed. The first
    # round counts the pixels that may change. The others halve the interval, counted in floats, and move the
    # end to the next rank that occurs: about 10 rounds for 4096 pixels, never more than 33.
    ranks = _rank(grad, mask, base, tl.arange(0, BLOCK), between, PIXELS, MASKED)
    lowest, highest, half = -_NEVER - 1, _NEVER - 1, -1
    while lowest < highest:
        # (lowest + highest) / 2 rounded down, without overflow.
        middle = (lowest & highest) + ((lowest ^ highest) >> 1)
        middle = tl.where(half < 0, highest, middle)
        lanes = (ranks <= middle).to(tl.int32)
        if PIXELS > BLOCK:
            for first in range(BLOCK, PIXELS, BLOCK):
                i = first + tl.arange(0, BLOCK)
                lanes += (_rank(grad, mask, base, i, between, PIXELS, MASKED) <= middle).to(tl.int32)
        below = tl.sum(lanes)
        half = tl.where(half < 0, (below + 1) // 2, half)
        enough = below >= half
        if enough:
            lanes = tl.where(ranks <= middle, ranks, -_NEVER - 1)
            if PIXELS > BLOCK:
                for first in range(BLOCK, PIXELS, BLOCK):
                    i = first + tl.arange(0, BLOCK)
                    other = _rank(grad, mask, base, i, between, PIXELS, MASKED)
                    lanes = tl.maximum(lanes, tl.where(other <= middle, other, -_NEVER - 1))
            highest = tl.max(lanes)
            lowest = tl.where(below == half, highest, lowest)
        else:
            lanes = tl.where(ranks <= middle, _NEVER, ranks)
            if PIXELS > BLOCK:
                for first in range(BLOCK, PIXELS, BLOCK):
                    i = first + tl.arange(0, BLOCK)
                    other = _rank(grad, mask, base, i, between, PIXELS, MASKED)
                    lanes = tl.minimum(lanes, tl.where(other <= middle, _NEVER, other))
            lowest = tl.min(lanes)
    return tl.where(lowest < 0, lowest ^ _NEVER, lowest).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def moved(  # type: ignore[no-untyped-def]
    adv,
    x0,
    grad,
    mask,
    base,
    i,
    between,
    median,
    s,
    PIXELS: tl.constexpr,
    STEPPED: tl.constexpr,
    MASKED: tl.constexpr,
):
    # The original, how far the step has moved it, 0 where it may not, and whether it may.
    at = base + i.to(tl.int64) * between
    free = may_change(mask, at, i < PIXELS, MASKED)
    x = tl.load(x0 + at, free, 0.0)
    new = tl.load(adv + at, free, 0.0)
    if STEPPED:
        g = finite(tl.load(grad + at, free, 0.0).to(tl.float32))
        new += s * tl.where(g > median, 1.0, tl.where(g < median, -1.0, 0.0))
    return x, tl.where(free, new - x, 0.0), free


@triton.jit
def limits(x, e, lowest, highest, free):  # type: ignore[no-untyped-def]
    # How far down and up a pixel may move: the ball cut by the bounds; 0 where it may not.
    low = tl.minimum(tl.maximum(-e, lowest - x), 0.0)
    high = tl.maximum(tl.minimum(e, highest - x), 0.0)
    return tl.where(free, low, 0.0), tl.where(free, high, 0.0)


@triton.jit
def shifted(delta, tau, low, high):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(delta - tau, low), high)


@triton.jit
def counted(delta, tau, low, high):  # type: ignore[no-untyped-def]
    # The shifted changes; which of them follow the shift; and which lie at the upper (1) or lower (-1) limit.
    down, up = delta - tau <= low, delta - tau >= high
    sides = up.to(tl.int32) - down.to(tl.int32)
    follow = 1 - (up | down).to(tl.int32)
    return shifted(delta, tau, low, high), follow, sides
