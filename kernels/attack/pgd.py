"""The L-infinity step of PGD and of APGD as one kernel: each image is read once and written once.

Definition: `reference.pgd` (Madry et al. 2018, arXiv:1706.06083) and `reference.momentum` (Croce & Hein 2020,
arXiv:2003.01690). 16 bytes a pixel with a float32 gradient, where eager torch moves about 68. The operators
run the kernel on CUDA tensors and the reference elsewhere; the kernel itself runs on CPU tensors under
TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.attack import reference
from hpcphotoz.kernels.checks import StepArguments
from hpcphotoz.kernels.device_functions import clamp, sign

BLOCK = 2048  # pixels a program, a power of two: 16 a thread, four independent 16-byte loads of each image
PLANE = 1024  # a plane of fewer pixels shares its program with the other bands


@triton.jit  # type: ignore[untyped-decorator]
def _pgd_kernel(  # type: ignore[no-untyped-def]
    out,
    previous,
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
    TILED: tl.constexpr,
    PADDED: tl.constexpr,
    STEPPED: tl.constexpr,
    MOMENTUM: tl.constexpr,
    MASKED: tl.constexpr,
    FLAGGED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Object n, its band(s), the offset of the program's run of memory, and the places in that run. Int64
    # offsets because N B H W passes 2^31 elements at survey batch sizes. BANDS and PIXELS are constants: a
    # division becomes a product, and the compiler sees which addresses are multiples of 16 bytes.
    pid = tl.program_id(0)
    if CHANNELS_LAST:  # a run is an object
        n = (pid // tl.cdiv(BANDS * PIXELS, BLOCK)).to(tl.int64)
        i = pid % tl.cdiv(BANDS * PIXELS, BLOCK) * BLOCK + tl.arange(0, BLOCK)
        inside = i < BANDS * PIXELS
        band = i % BANDS
        run = n * (BANDS * PIXELS)
    elif TILED:  # a run is an object, too: some pixels, all bands
        n = (pid // tl.cdiv(PIXELS, BLOCK)).to(tl.int64)
        p = (pid % tl.cdiv(PIXELS, BLOCK) * BLOCK + tl.arange(0, BLOCK))[:, None]
        b = tl.arange(0, PADDED)[None, :]
        i = b * PIXELS + p
        inside = (p < PIXELS) & (b < BANDS)
        band = tl.minimum(b, BANDS - 1)
        run = n * (BANDS * PIXELS)
    else:  # a run is a plane: its parameters are four scalars
        plane = (pid // tl.cdiv(PIXELS, BLOCK)).to(tl.int64)
        i = pid % tl.cdiv(PIXELS, BLOCK) * BLOCK + tl.arange(0, BLOCK)
        inside = i < PIXELS
        n = plane // BANDS
        band = plane % BANDS
        run = plane * PIXELS

    # In place nothing of an inactive object is read, else the attacked image alone: a branch that copies it
    # takes 141 registers instead of fewer than 128.
    reads = inside
    if FLAGGED:
        if IN_PLACE:
            if tl.load(active + n) == 0:
                return
        else:
            reads = (inside & tl.load(active + n)) != 0  # the interpreter wants the comparison last
    changes = reads
    if MASKED:
        changes = (reads & tl.load(mask + run + i, reads)) != 0

    old = tl.load(adv + run + i, inside)
    x = tl.load(x0 + run + i, reads)
    e = tl.load(eps + n * eps_stride + band)
    low = tl.load(lo + n * lo_stride + band)
    high = tl.load(hi + n * hi_stride + band)
    new = old
    if STEPPED:
        g = tl.load(grad + run + i, reads).to(tl.float32)
        new = old + tl.load(step + n * step_stride + band) * sign(g)
    new = clamp(clamp(new, x - e, x + e), low, high)
    if MOMENTUM:
        # d - d / 4 is 3 d / 4 rounded once, and d / 4 is exact: no fused multiply-add changes a bit.
        d = new - old
        new = old + (d - 0.25 * d) + 0.25 * (old - tl.load(previous + run + i, reads))
        new = clamp(clamp(new, x - e, x + e), low, high)
    tl.store(out + run + i, tl.where(changes, new, old), inside)


def launch(
    given: StepArguments, previous: Tensor | None = None, block: int = BLOCK, *, in_place: bool = False
) -> Tensor:
    """Run the kernel itself, on any device: `reference.pgd`, or `momentum` if `previous` is given.

    `in_place` writes to the memory of `adv`, and neither reads nor writes inactive objects.
    """
    x0, out = given.x0, given.adv if in_place else torch.empty_like(given.x0)
    if x0.numel() == 0:
        return out
    tensors, constants = given.of_kernel()
    bands, pixels, last = constants["BANDS"], constants["PIXELS"], constants["CHANNELS_LAST"]
    tiled = not last and pixels < PLANE
    padded = triton.next_power_of_2(bands) if tiled else 1
    run = pixels * (bands if last else 1)
    block = max(1, min(block // padded, triton.next_power_of_2(run)))
    programs = x0.shape[0] * triton.cdiv(run, block) * (1 if last or tiled else bands)
    with checks.on_device(x0):
        wrap_triton(_pgd_kernel)[(programs,)](
            out,
            x0 if previous is None else previous,
            *tensors,
            **constants,
            TILED=tiled,
            PADDED=padded,
            MOMENTUM=previous is not None,
            IN_PLACE=in_place,
            BLOCK=block,
        )
    return out


@triton_op("hpcphotoz::pgd", mutates_args={})
def pgd(
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
    """The torch operator: the kernel on CUDA, `reference.pgd` elsewhere; `checks` raises ValueError."""
    given = StepArguments(adv, x0, grad, eps, step, lo, hi, mask, active).checked()
    return launch(given) if x0.is_cuda else reference.pgd(*given)


@triton_op("hpcphotoz::pgd_", mutates_args={"adv"})
def pgd_(
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
    """`pgd` in the memory of `adv`; on CUDA no inactive object is read or written."""
    given = StepArguments(adv, x0, grad, eps, step, lo, hi, mask, active).checked()
    if x0.is_cuda:
        launch(given, in_place=True)
    else:
        reference.pgd_in_place(*given)


@triton_op("hpcphotoz::momentum", mutates_args={})
def momentum(
    adv: Tensor,
    previous: Tensor,
    x0: Tensor,
    grad: Tensor,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """The torch operator: the kernel on CUDA, `reference.momentum` elsewhere; `checks` raises ValueError."""
    given = StepArguments(adv, x0, grad, eps, step, lo, hi, mask, active).checked()
    checks.check_images(x0, previous=previous)
    if x0.is_cuda:
        return launch(given, previous)
    return reference.momentum(adv, previous, x0, grad, eps, step, lo, hi, mask, active)
