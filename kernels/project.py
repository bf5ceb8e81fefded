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
_WARP = 64 if torch.version.hip else 32  # threads
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
    STRIDE: tl.constexpr,
):
    # One object a program, read twice: for two norms, and, backwards (what was read last is in the cache
    # still), to write. In runs: the planes, whose parameters are scalars, or in channels_last the whole
    # object. There a block begins STRIDE numbers after the one before, a multiple of BANDS, so that a lane
    # keeps its band and its parameters. The sums are float64, where no square of a float32 overflows or
    # vanishes.
    n = tl.program_id(0).to(tl.int64)  # N B H W passes 2^31 elements at survey batch sizes
    count: tl.constexpr = BANDS * PIXELS
    runs: tl.constexpr = 1 if CHANNELS_LAST else BANDS
    run: tl.constexpr = count // runs
    blocks: tl.constexpr = (run + STRIDE - 1) // STRIDE
    if FLAGGED:
        if tl.load(active + n) == 0:
            _copy(out, adv, n * count, count, 1, BLOCK)
            return
    lane = tl.arange(0, BLOCK)
    # v = step grad, c = (adv - x0) / eps, d = step v / eps: |delta / eps|^2 = |c + d / |v||^2.
    vv = tl.zeros((BLOCK,), tl.float64)
    cc, cd, dd = vv, vv, vv
    for k in range(runs):
        band = lane % BANDS if CHANNELS_LAST else k
        s = tl.load(step + n * step_stride + band)
        e = tl.load(eps + n * eps_stride + band)
        for m in range(blocks):
            i = m * STRIDE + lane
            at = n * count + k * run + i
            free = _free(mask, at, (lane < STRIDE) & (i < run), MASKED)
            c = tl.load(adv + at, free, 0.0) - tl.load(x0 + at, free, 0.0)
            c = tl.where(e > 0, tl.div_rn(c, tl.where(e > 0, e, 1.0)), 0.0).to(tl.float64)
            cc += c * c
            if STEPPED:
                v = _ascent(grad, s, at, free).to(tl.float64)
                d = v * tl.where(e > 0, tl.div_rn(s, tl.where(e > 0, e, 1.0)), 0.0).to(tl.float64)
                vv += v * v
                cd += c * d
                dd += d * d
    square, unit, length = tl.sum(cc), 1.0, 1.0
    if STEPPED:
        norm = tl.sqrt(tl.sum(vv))
        # A power of two brings |v| among the normal float32 numbers.
        unit = tl.where(norm > 1e37, 0.00006103515625, tl.where(norm < 1e-30, 1.2676506002282294e30, 1.0))
        unit = tl.where(norm > 0, unit, 0.0).to(tl.float32)
        norm = tl.where(norm > 0, norm, 1.0)
        length = tl.where(unit > 0, norm * unit.to(tl.float64), 1.0).to(tl.float32)
        square += (2.0 * tl.sum(cd) + tl.sum(dd) / norm) / norm
    radius = tl.sqrt(square).to(tl.float32)
    for back in range(runs):
        k = runs - 1 - back
        band = lane % BANDS if CHANNELS_LAST else k
        s = tl.load(step + n * step_stride + band)
        e = tl.load(eps + n * eps_stride + band)
        lowest = tl.load(lo + n * lo_stride + band)
        highest = tl.load(hi + n * hi_stride + band)
        for m in range(blocks):
            i = (blocks - 1 - m) * STRIDE + lane
            inside = (lane < STRIDE) & (i < run)
            at = n * count + k * run + i
            free = _free(mask, at, inside, MASKED)
            a = tl.load(adv + at, inside, 0.0)
            x = tl.load(x0 + at, inside, 0.0)
            moved = a
            if STEPPED:
                moved = a + s * tl.div_rn(_ascent(grad, s, at, free) * unit, length)
            drawn = tl.where(radius > 1, x + tl.div_rn(moved - x, tl.maximum(radius, 1.0)), moved)
            drawn = tl.where(e > 0, drawn, x)
            drawn = tl.minimum(tl.maximum(drawn, lowest, _EVERY), highest, _EVERY)
            tl.store(out + at, tl.where(free, drawn, a), inside)


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
    # The lower median, exactly: the lowest rank that half of the pixels, rounded up, do not exceed. The first
    # round counts the pixels that may change. The others halve the interval, counted in floats, and move the
    # end to the next rank that occurs: about 10 rounds for 4096 pixels, never more than 33.
    ranks = _rank(grad, mask, base, tl.arange(0, BLOCK), between, PIXELS, MASKED)
    lowest, highest, half = -_NEVER - 1, _NEVER - 1, -1
    while lowest < highest:
        middle = (lowest & highest) + (
            (lowest ^ highest) >> 1
        )  # (lowest + highest) / 2 rounded down, without overflow
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
def _moved(  # type: ignore[no-untyped-def]
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
    free = _free(mask, at, i < PIXELS, MASKED)
    x = tl.load(x0 + at, free, 0.0)
    moved = tl.load(adv + at, free, 0.0)
    if STEPPED:
        g = _finite(tl.load(grad + at, free, 0.0).to(tl.float32))
        moved += s * tl.where(g > median, 1.0, tl.where(g < median, -1.0, 0.0))
    return x, tl.where(free, moved - x, 0.0), free


@triton.jit
def _limits(x, e, lowest, highest, free):  # type: ignore[no-untyped-def]
    # How far down and up a pixel may move: the ball cut by the bounds; 0 where it may not.
    low = tl.minimum(tl.maximum(-e, lowest - x), 0.0)
    high = tl.maximum(tl.minimum(e, highest - x), 0.0)
    return tl.where(free, low, 0.0), tl.where(free, high, 0.0)


@triton.jit
def _shifted(delta, tau, low, high):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(delta - tau, low), high)


@triton.jit
def _counted(delta, tau, low, high):  # type: ignore[no-untyped-def]
    # The shifted changes; which of them follow the shift; and which lie at the upper (1) or lower (-1) limit.
    down, up = delta - tau <= low, delta - tau >= high
    sides = up.to(tl.int32) - down.to(tl.int32)
    follow = 1 - (up | down).to(tl.int32)
    return _shifted(delta, tau, low, high), follow, sides


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
    # are read again, from the cache, in each round.
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
    lowest = tl.load(lo + n * lo_stride + band)
    highest = tl.load(hi + n * hi_stride + band)
    median = 0.0
    if STEPPED:
        median = _median(grad, mask, base, between, PIXELS, MASKED, BLOCK)

    start = tl.arange(0, BLOCK)
    x, delta, free = _moved(adv, x0, grad, mask, base, start, between, median, s, PIXELS, STEPPED, MASKED)
    low, high = _limits(x, e, lowest, highest, free)
    # The shift lies between the lowest and the greatest delta, for [low, high] holds 0.
    smallest, greatest = delta, delta
    if PIXELS > BLOCK:
        for first in range(BLOCK, PIXELS, BLOCK):
            i = first + start
            _, d, _ = _moved(adv, x0, grad, mask, base, i, between, median, s, PIXELS, STEPPED, MASKED)
            smallest, greatest = tl.minimum(smallest, d), tl.maximum(greatest, d)
    left, right = tl.min(smallest), tl.max(greatest)
    # The sum of the shifted changes falls with the shift in straight pieces, from one limit that a pixel
    # reaches to the next. Newton's step is exact within a piece: a second one from the same piece (its counts
    # differ from any other's) is the last. Where it leads out of the interval, and now and then, the
    # interval is halved. 3 or 4 rounds for images under attack.
    tau = tl.minimum(tl.maximum(0.0, left), right)
    never = tl.full((), -1, tl.int64) << 62  # the counts of no piece
    before, rounds = never, 0
    while rounds < 256:
        lanes, follow, sides = _counted(delta, tau, low, high)
        if PIXELS > BLOCK:
            for first in range(BLOCK, PIXELS, BLOCK):
                i = first + start
                y, d, may = _moved(adv, x0, grad, mask, base, i, between, median, s, PIXELS, STEPPED, MASKED)
                floor, ceiling = _limits(y, e, lowest, highest, may)
                more, follows, side = _counted(d, tau, floor, ceiling)
                lanes, follow, sides = lanes + more, follow + follows, sides + side
        # In one sum: how many follow, and above bit 32 how many more are at the upper limit than the lower.
        total, now = tl.sum(lanes), tl.sum((sides.to(tl.int64) << 32) + follow)
        number = (now & 0xFFFFFFFF).to(tl.float32)
        left, right = tl.where(total > 0, tau, left), tl.where(total > 0, right, tau)
        newton = tau + tl.div_rn(total, tl.maximum(number, 1.0))
        middle = 0.5 * (left + right)
        last = (total == 0) | (now == before) | ((number > 0) & (newton == tau))
        halves = (last == 0) & ((number == 0) | (newton <= left) | (newton >= right) | (rounds % 8 == 7))
        last = last | (halves & (middle == tau))
        inside = tl.where(number > 0, tl.minimum(tl.maximum(newton, left), right), tau)
        tau = tl.where(halves, middle, inside)
        before = tl.where(halves, never, now)
        rounds = tl.where(last, 256, rounds + 1)
    for first in range(0, PIXELS, BLOCK):
        i = first + start
        if PIXELS > BLOCK:
            x, delta, free = _moved(adv, x0, grad, mask, base, i, between, median, s, PIXELS, STEPPED, MASKED)
            low, high = _limits(x, e, lowest, highest, free)
        at = base + i.to(tl.int64) * between
        x = tl.load(x0 + at, i < PIXELS, 0.0)  # again: in registers it would cost more than from the cache
        # x + (highest - x) may round to just above highest.
        new = tl.minimum(
            tl.maximum(x + _shifted(delta, tau, low, high), tl.minimum(lowest, x)), tl.maximum(highest, x)
        )
        if MASKED:
            may = _free(mask, at, i < PIXELS, MASKED)
            new = tl.where(may, new, tl.load(adv + at, i < PIXELS, 0.0))
        tl.store(out + at, new, i < PIXELS)


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
    block: int = 2048,
) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `reference.l2`."""
    bands, pixels = int(x0.shape[1]), int(x0.shape[2] * x0.shape[3])
    last = checks.is_channels_last(x0)
    block = min(block, triton.next_power_of_2(bands * pixels if last else pixels))
    # Of whole 16-byte loads of a half-precision gradient, where a block holds so many.
    unit = bands * (8 if block >= 64 * bands else 1) if last else 1
    options = {"BLOCK": block, "STRIDE": block // unit * unit, "num_warps": _warps(block, pixels=4)}
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
    # Warps of a program in which each thread has `pixels` pixels of a block: never more than 1024 threads.
    return max(1, min(1024, block // pixels) // _WARP)


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
