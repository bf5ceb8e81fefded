"""A step in the noise-weighted L2 ball and one in the flux-conserving ball, each as one kernel.

Definitions and references: `reference.l2`, `reference.flux`. The operators `hpcphotoz::l2` and
`hpcphotoz::flux` run the kernels on CUDA tensors and the reference elsewhere; the kernels themselves run on
CPU tensors under TRITON_INTERPRET=1. They add up in another order than the reference: equal to rounding.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from hpcphotoz.kernels import checks, reference

_ONE_BLOCK = 16384  # pixels of an object and band that a program of 1024 threads keeps in registers
_HUGE = tl.constexpr(3.4028234663852886e38)
_NEVER = tl.constexpr(0x7FFFFFFF)  # where a pixel may not change: the rank of a NaN, which no gradient has
_EVERY = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _finite(x):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(tl.where(x == x, x, 0.0), -_HUGE), _HUGE)


@triton.jit  # type: ignore[untyped-decorator]
def _free(mask, at, inside, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    if MASKED:
        inside = tl.load(mask + at, inside, 0) != 0
    return inside


@triton.jit  # type: ignore[untyped-decorator]
def _copy(out, adv, base, count, between, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        at = base + i.to(tl.int64) * between
        tl.store(out + at, tl.load(adv + at, i < count), i < count)


@triton.jit
def _ascent(grad, s, at, free):  # type: ignore[no-untyped-def]
    # step grad, finite even where it overflows; 0 where a pixel may not change.
    return _finite(s * _finite(tl.load(grad + at, free, 0.0).to(tl.float32)))


@triton.jit  # type: ignore[untyped-decorator]
def _l2_kernel(  # type: ignore[no-untyped-def]
    out,
    adv,
    x0,
    grad,
    eps,
    step,
    lo,
    hi,
    mask,
    active,
    eps_stride,
    step_stride,
    lo_stride,
    hi_stride,
    BANDS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    STEPPED: tl.constexpr,
    MASKED: tl.constexpr,
    FLAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One object a program, read four times; the second to fourth time it is in the cache.
    n = tl.program_id(0).to(tl.int64)  # N B H W passes 2^31 elements at survey batch sizes
    count: tl.constexpr = BANDS * PIXELS
    if FLAGGED:
        if tl.load(active + n) == 0:
            _copy(out, adv, n * count, count, 1, BLOCK)
            return
    lanes = tl.zeros((BLOCK,), tl.float32)
    if STEPPED:
        for first in range(0, count, BLOCK):
            i = first + tl.arange(0, BLOCK)
            band = i % BANDS if CHANNELS_LAST else i // PIXELS
            s = tl.load(step + n * step_stride + band, i < count, 0.0)
            free = _free(mask, n * count + i, i < count, MASKED)
            lanes = tl.maximum(lanes, tl.abs(_ascent(grad, s, n * count + i, free)))
        largest = tl.max(lanes)
        largest = tl.where(largest > 0, largest, 1.0)
        lanes = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, count, BLOCK):
            i = first + tl.arange(0, BLOCK)
            band = i % BANDS if CHANNELS_LAST else i // PIXELS
            s = tl.load(step + n * step_stride + band, i < count, 0.0)
            free = _free(mask, n * count + i, i < count, MASKED)
            d = tl.div_rn(_ascent(grad, s, n * count + i, free), largest)
            lanes += d * d
        length = tl.maximum(tl.sqrt_rn(tl.sum(lanes)), 1.0)
        lanes = tl.zeros((BLOCK,), tl.float32)
    radius = 0.0
    # Once for |delta / eps|, once to write.
    for writes in tl.static_range(2):
        for first in range(0, count, BLOCK):
            i = first + tl.arange(0, BLOCK)
            band = i % BANDS if CHANNELS_LAST else i // PIXELS
            inside = i < count
            at = n * count + i
            free = _free(mask, at, inside, MASKED)
            e = tl.load(eps + n * eps_stride + band, inside, 0.0)
            a = tl.load(adv + at, inside, 0.0)
            x = tl.load(x0 + at, inside, 0.0)
            moved = a
            if STEPPED:
                s = tl.load(step + n * step_stride + band, inside, 0.0)
                moved = a + s * tl.div_rn(tl.div_rn(_ascent(grad, s, at, free), largest), length)
            delta = tl.where(free & (e > 0), moved - x, 0.0)
            if writes == 0:
                z = tl.div_rn(delta, tl.where(e > 0, e, 1.0))
                lanes += z * z
            else:
                drawn = x + tl.div_rn(delta, tl.maximum(radius, 1.0))
                drawn = tl.where(radius > 1, drawn, tl.where(e > 0, moved, x))
                least = tl.load(lo + n * lo_stride + band, inside, 0.0)
                most = tl.load(hi + n * hi_stride + band, inside, 0.0)
                drawn = tl.minimum(tl.maximum(drawn, least, _EVERY), most, _EVERY)
                tl.store(out + at, tl.where(free, drawn, a), inside)
        if writes == 0:
            radius = tl.sqrt_rn(tl.sum(lanes))


@triton.jit  # type: ignore[untyped-decorator]
def _rank(grad, mask, base, i, between, PIXELS: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    # The gradient as an int32 in the same order: the bits of a float, those of a negative one turned.
    at = base + i.to(tl.int64) * between
    free = _free(mask, at, i < PIXELS, MASKED)
    bits = _finite(tl.load(grad + at, free, 0.0).to(tl.float32)).to(tl.int32, bitcast=True)
    return tl.where(free, tl.where(bits < 0, bits ^ _NEVER, bits), _NEVER)


@triton.jit  # type: ignore[untyped-decorator]
def _median(  # type: ignore[no-untyped-def]
    grad, mask, base, between, PIXELS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr
):
    # The lower median, exactly: the least rank that half of the pixels, rounded up, do not exceed. The first
    # round counts the pixels, the others halve the interval.
    ranks = _rank(grad, mask, base, tl.arange(0, BLOCK), between, PIXELS, MASKED)
    least, most, half = -_NEVER - 1, _NEVER - 1, -1
    for _ in range(33):
        middle = (least & most) + ((least ^ most) >> 1)  # (least + most) / 2 rounded down, without overflow
        middle = tl.where(half < 0, most, middle)
        lanes = (ranks <= middle).to(tl.int32)
        if PIXELS > BLOCK:
            for first in range(BLOCK, PIXELS, BLOCK):
                i = first + tl.arange(0, BLOCK)
                lanes += (_rank(grad, mask, base, i, between, PIXELS, MASKED) <= middle).to(tl.int32)
        below = tl.sum(lanes)
        half = tl.where(half < 0, (below + 1) // 2, half)
        least, most = tl.where(below < half, middle + 1, least), tl.where(below < half, most, middle)
    return tl.where(least < 0, least ^ _NEVER, least).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _box(  # type: ignore[no-untyped-def]
    adv,
    x0,
    grad,
    mask,
    base,
    i,
    between,
    median,
    e,
    s,
    least,
    most,
    PIXELS: tl.constexpr,
    STEPPED: tl.constexpr,
    MASKED: tl.constexpr,
):
    # How far the pixels have moved and how far down and up they may; 0 where they may not.
    at = base + i.to(tl.int64) * between
    free = _free(mask, at, i < PIXELS, MASKED)
    x = tl.load(x0 + at, free, 0.0)
    moved = tl.load(adv + at, free, 0.0)
    if STEPPED:
        g = _finite(tl.load(grad + at, free, 0.0).to(tl.float32))
        moved += s * tl.where(g > median, 1.0, tl.where(g < median, -1.0, 0.0))
    low = tl.minimum(tl.maximum(-e, least - x), 0.0)
    high = tl.maximum(tl.minimum(e, most - x), 0.0)
    return tl.where(free, moved - x, 0.0), tl.where(free, low, 0.0), tl.where(free, high, 0.0)


@triton.jit
def _clamped(delta, tau, low, high):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(delta - tau, low), high)


@triton.jit  # type: ignore[untyped-decorator]
def _flux_kernel(  # type: ignore[no-untyped-def]
    out,
    adv,
    x0,
    grad,
    eps,
    step,
    lo,
    hi,
    mask,
    active,
    eps_stride,
    step_stride,
    lo_stride,
    hi_stride,
    BANDS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    STEPPED: tl.constexpr,
    MASKED: tl.constexpr,
    FLAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One object and band a program. If they are one block the pixels stay in registers; else the later blocks
    # are read again, from the cache, for each of the 73 sums.
    n = (tl.program_id(0) // BANDS).to(tl.int64)  # N B H W passes 2^31 elements at survey batch sizes
    band = tl.program_id(0) % BANDS
    between: tl.constexpr = BANDS if CHANNELS_LAST else 1
    base = n * (BANDS * PIXELS) + (band if CHANNELS_LAST else band * PIXELS)
    if FLAGGED:
        if tl.load(active + n) == 0:
            _copy(out, adv, base, PIXELS, between, BLOCK)
            return
    e = tl.load(eps + n * eps_stride + band)
    s = tl.load(step + n * step_stride + band)
    least = tl.load(lo + n * lo_stride + band)
    most = tl.load(hi + n * hi_stride + band)
    median = 0.0
    if STEPPED:
        median = _median(grad, mask, base, between, PIXELS, MASKED, BLOCK)

    start = tl.arange(0, BLOCK)
    delta, low, high = _box(
        adv, x0, grad, mask, base, start, between, median, e, s, least, most, PIXELS, STEPPED, MASKED
    )
    # The shift lies between the least and the greatest delta, for [low, high] holds 0.
    smallest, greatest = delta, delta
    if PIXELS > BLOCK:
        for first in range(BLOCK, PIXELS, BLOCK):
            i = first + start
            d, floor, ceiling = _box(
                adv, x0, grad, mask, base, i, between, median, e, s, least, most, PIXELS, STEPPED, MASKED
            )
            smallest, greatest = tl.minimum(smallest, d), tl.maximum(greatest, d)
    left, right = tl.min(smallest), tl.max(greatest)
    for _ in range(40):
        tau = 0.5 * (left + right)
        lanes = _clamped(delta, tau, low, high)
        if PIXELS > BLOCK:
            for first in range(BLOCK, PIXELS, BLOCK):
                i = first + start
                d, floor, ceiling = _box(
                    adv, x0, grad, mask, base, i, between, median, e, s, least, most, PIXELS, STEPPED, MASKED
                )
                lanes += _clamped(d, tau, floor, ceiling)
        above = tl.sum(lanes) > 0
        left, right = tl.where(above, tau, left), tl.where(above, right, tau)
    tau = 0.5 * (left + right)
    for first in range(0, PIXELS, BLOCK):
        i = first + start
        if PIXELS > BLOCK:
            delta, low, high = _box(
                adv, x0, grad, mask, base, i, between, median, e, s, least, most, PIXELS, STEPPED, MASKED
            )
        at = base + i.to(tl.int64) * between
        free = _free(mask, at, i < PIXELS, MASKED)
        x, a = tl.load(x0 + at, free, 0.0), tl.load(adv + at, i < PIXELS, 0.0)
        # x + (most - x) may round to just above most.
        new = tl.minimum(
            tl.maximum(x + _clamped(delta, tau, low, high), tl.minimum(least, x)), tl.maximum(most, x)
        )
        tl.store(out + at, tl.where(free, new, a), i < PIXELS)


def launch_l2(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
    block: int = 4096,
) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `reference.l2`."""
    options = {"BLOCK": block, "num_warps": _warps(block, pixels=8)}
    return _launch(_l2_kernel, x0.shape[0], adv, x0, grad, eps, step, lo, hi, mask, active, options)


def launch_flux(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
    block: int = 4096,
    one_block: int = _ONE_BLOCK,
) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `reference.flux`."""
    plane = triton.next_power_of_2(int(x0.shape[2] * x0.shape[3]))
    block = plane if plane <= one_block else block
    options = {"BLOCK": block, "num_warps": _warps(block, pixels=16)}
    return _launch(
        _flux_kernel, x0.shape[0] * x0.shape[1], adv, x0, grad, eps, step, lo, hi, mask, active, options
    )


def _warps(block: int, pixels: int) -> int:
    # Of 32 threads, each with so many pixels of a block. 16, in three arrays, fit the 64 registers that each
    # of 1024 threads may have.
    return max(1, min(32, block // (32 * pixels)))


def _launch(
    kernel: Any,
    programs: int,
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None,
    active: Tensor | None,
    options: dict[str, int],
) -> Tensor:
    out = torch.empty_like(x0)
    if x0.numel() == 0:
        return out
    with checks.on_device(x0):
        wrap_triton(kernel)[(programs,)](
            out,
            adv,
            x0,
            x0 if grad is None else grad,
            eps,
            step,
            lo,
            hi,
            x0 if mask is None else mask,
            x0 if active is None else active,
            *(checks.band_stride(t) for t in (eps, step, lo, hi)),
            BANDS=int(x0.shape[1]),
            PIXELS=int(x0.shape[2] * x0.shape[3]),
            CHANNELS_LAST=checks.is_channels_last(x0),
            STEPPED=grad is not None,
            MASKED=mask is not None,
            FLAGGED=active is not None,
            **options,
        )
    return out


@triton_op("hpcphotoz::l2", mutates_args={})
def l2(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """`reference.l2` as a torch operator: the fused kernel on CUDA, the reference elsewhere.

    Raises:
        ValueError: shapes, types, layouts or devices that do not belong together, as in `checks`.
    """
    checks.check_step(adv, x0, grad, eps, step, lo, hi, mask, active)
    if x0.device.type != "cuda":
        return reference.l2(adv, x0, grad, eps, step, lo, hi, mask, active)
    return launch_l2(adv, x0, grad, eps, step, lo, hi, mask, active)


@triton_op("hpcphotoz::flux", mutates_args={})
def flux(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """`reference.flux` as a torch operator: the fused kernel on CUDA, the reference elsewhere.

    Raises:
        ValueError: shapes, types, layouts or devices that do not belong together, as in `checks`.
    """
    checks.check_step(adv, x0, grad, eps, step, lo, hi, mask, active)
    if x0.device.type != "cuda":
        return reference.flux(adv, x0, grad, eps, step, lo, hi, mask, active)
    return launch_flux(adv, x0, grad, eps, step, lo, hi, mask, active)
