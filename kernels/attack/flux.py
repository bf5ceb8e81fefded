"""A step in the flux-conserving ball as one kernel: one object and band a program.

Definition and references: `reference.flux`. The operator `hpcphotoz::flux` runs the kernel on CUDA tensors
and the reference elsewhere; under TRITON_INTERPRET=1 the kernel itself runs on CPU tensors. Its sums are
taken in another order than those of the reference: results are equal to rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.attack import reference
from hpcphotoz.kernels.attack.flux_functions import counted, limits, lower_median, moved, shifted
from hpcphotoz.kernels.checks import StepArguments
from hpcphotoz.kernels.device_functions import copy_unchanged, may_change, warps

_ONE_BLOCK = 16384  # pixels of an object and band that a program of 1024 threads keeps in registers


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
    IN_PLACE: tl.constexpr,
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
            if not IN_PLACE:
                copy_unchanged(out, adv, base, PIXELS, between, BLOCK)
            return
    e = tl.load(eps + n * eps_stride + band)
    s = tl.load(step + n * step_stride + band)
    lowest = tl.load(lo + n * lo_stride + band)
    highest = tl.load(hi + n * hi_stride + band)
    median = 0.0
    if STEPPED:
        median = lower_median(grad, mask, base, between, PIXELS, MASKED, BLOCK)

    start = tl.arange(0, BLOCK)
    x, delta, free = moved(adv, x0, grad, mask, base, start, between, median, s, PIXELS, STEPPED, MASKED)
    low, high = limits(x, e, lowest, highest, free)
    # The shift lies between the lowest and the greatest delta, for [low, high] holds 0.
    smallest, greatest = delta, delta
    if PIXELS > BLOCK:
        for first in range(BLOCK, PIXELS, BLOCK):
            i = first + start
            _, d, _ = moved(adv, x0, grad, mask, base, i, between, median, s, PIXELS, STEPPED, MASKED)
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
        lanes, follow, sides = counted(delta, tau, low, high)
        if PIXELS > BLOCK:
            for first in range(BLOCK, PIXELS, BLOCK):
                i = first + start
                y, d, may = moved(adv, x0, grad, mask, base, i, between, median, s, PIXELS, STEPPED, MASKED)
                floor, ceiling = limits(y, e, lowest, highest, may)
                more, follows, side = counted(d, tau, floor, ceiling)
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
            x, delta, free = moved(adv, x0, grad, mask, base, i, between, median, s, PIXELS, STEPPED, MASKED)
            low, high = limits(x, e, lowest, highest, free)
        at = base + i.to(tl.int64) * between
        x = tl.load(x0 + at, i < PIXELS, 0.0)  # again: in registers it would cost more than from the cache
        # x + (highest - x) may round to just above highest.
        new = tl.minimum(
            tl.maximum(x + shifted(delta, tau, low, high), tl.minimum(lowest, x)), tl.maximum(highest, x)
        )
        if MASKED:
            may = may_change(mask, at, i < PIXELS, MASKED)
            new = tl.where(may, new, tl.load(adv + at, i < PIXELS, 0.0))
        tl.store(out + at, new, i < PIXELS)


def launch(
    given: StepArguments, block: int = 4096, one_block: int = _ONE_BLOCK, *, in_place: bool = False
) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are.

    Args:
        given: the arguments of the step.
        block: pixels that a program handles at a time, a power of two.
        one_block: planes of at most this many pixels are one block.
        in_place: write to the memory of `adv`; inactive objects are neither read nor written.
    """
    x0, out = given.x0, given.adv if in_place else torch.empty_like(given.x0)
    if x0.numel() == 0:
        return out
    plane = triton.next_power_of_2(int(x0.shape[2] * x0.shape[3]))
    block = plane if plane <= one_block else block
    tensors, constants = given.of_kernel()
    with checks.on_device(x0):
        wrap_triton(_flux_kernel)[(x0.shape[0] * x0.shape[1],)](
            out, *tensors, **constants, IN_PLACE=in_place, BLOCK=block, num_warps=warps(block, pixels=16)
        )
    return out


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
    """The torch operator: the kernel on CUDA, `reference.flux` elsewhere; `checks` raises ValueError."""
    given = StepArguments(adv, x0, grad, eps, step, lo, hi, mask, active).checked()
    return launch(given) if x0.is_cuda else reference.flux(*given)


@triton_op("hpcphotoz::flux_", mutates_args={"adv"})
def flux_(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
) -> None:
    """`flux` in the memory of `adv`; on CUDA no inactive object is read or written."""
    given = StepArguments(adv, x0, grad, eps, step, lo, hi, mask, active).checked()
    if x0.is_cuda:
        launch(given, in_place=True)
    else:
        adv.copy_(reference.flux(*given))
