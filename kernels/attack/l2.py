"""A step in the noise-weighted L2 ball as one kernel: each object is read twice and written once.

Definition and references: `reference.l2`. The operator `hpcphotoz::l2` runs the kernel on CUDA tensors and
the reference elsewhere; under TRITON_INTERPRET=1 the kernel itself runs on CPU tensors. Its sums are taken in
another order than those of the reference: results are equal to rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.attack import reference
from hpcphotoz.kernels.checks import StepArguments
from hpcphotoz.kernels.device_functions import clamp, copy_unchanged, finite, may_change, warps


@triton.jit
def _ascent(grad, s, at, free):  # type: ignore[no-untyped-def]
    # step grad, finite even where it overflows; 0 where a pixel may not change.
    return finite(s * finite(tl.load(grad + at, free, 0.0).to(tl.float32)))


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
    IN_PLACE: tl.constexpr,
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
            if not IN_PLACE:
                copy_unchanged(out, adv, n * count, count, 1, BLOCK)
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
            free = may_change(mask, at, (lane < STRIDE) & (i < run), MASKED)
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
            free = may_change(mask, at, inside, MASKED)
            a = tl.load(adv + at, inside, 0.0)
            x = tl.load(x0 + at, inside, 0.0)
            moved = a
            if STEPPED:
                moved = a + s * tl.div_rn(_ascent(grad, s, at, free) * unit, length)
            drawn = tl.where(radius > 1, x + tl.div_rn(moved - x, tl.maximum(radius, 1.0)), moved)
            drawn = tl.where(e > 0, drawn, x)
            drawn = clamp(drawn, lowest, highest)
            tl.store(out + at, tl.where(free, drawn, a), inside)


def launch(given: StepArguments, block: int = 2048, *, in_place: bool = False) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are.

    Args:
        given: the arguments of the step.
        block: pixels at a time, a power of two.
        in_place: write to the memory of `adv`; inactive objects are neither read nor written.
    """
    x0, out = given.x0, given.adv if in_place else torch.empty_like(given.x0)
    if x0.numel() == 0:
        return out
    tensors, constants = given.of_kernel()
    bands, pixels, last = constants["BANDS"], constants["PIXELS"], constants["CHANNELS_LAST"]
    block = min(block, triton.next_power_of_2(bands * pixels if last else pixels))
    # A multiple of whole 16-byte loads of a half-precision gradient, where a block holds that many.
    unit = bands * (8 if block >= 64 * bands else 1) if last else 1
    with checks.on_device(x0):
        wrap_triton(_l2_kernel)[(x0.shape[0],)](
            out,
            *tensors,
            **constants,
            IN_PLACE=in_place,
            BLOCK=block,
            STRIDE=block // unit * unit,
            num_warps=warps(block, pixels=4),
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
    """The torch operator: the kernel on CUDA, `reference.l2` elsewhere; `checks` raises ValueError."""
    given = StepArguments(adv, x0, grad, eps, step, lo, hi, mask, active).checked()
    return launch(given) if x0.is_cuda else reference.l2(*given)


@triton_op("hpcphotoz::l2_", mutates_args={"adv"})
def l2_(
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
    """`l2` in the memory of `adv`; on CUDA no inactive object is read or written."""
    given = StepArguments(adv, x0, grad, eps, step, lo, hi, mask, active).checked()
    if x0.is_cuda:
        launch(given, in_place=True)
    else:
        adv.copy_(reference.l2(*given))
