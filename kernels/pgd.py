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

from hpcphotoz.kernels import checks, reference
from hpcphotoz.kernels.device_functions import clamp

BLOCK = 2048  # pixels a program: 16 a thread, four independent 16-byte loads of each image
PLANE = 1024  # a plane of fewer pixels shares its program with the other bands


@triton.jit  # type: ignore[untyped-decorator]
def _pgd_kernel(  # type: ignore[no-untyped-def]
    out,
    copy,
    adv,
    previous,
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
    COPIED: tl.constexpr,
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
        last = i
    elif TILED:  # a run is an object, too: some pixels, all bands
        n = (pid // tl.cdiv(PIXELS, BLOCK)).to(tl.int64)
        p = (pid % tl.cdiv(PIXELS, BLOCK) * BLOCK + tl.arange(0, BLOCK))[:, None]
        b = tl.arange(0, PADDED)[None, :]
        i = b * PIXELS + p
        inside = (p < PIXELS) & (b < BANDS)
        band = tl.minimum(b, BANDS - 1)
        run = n * (BANDS * PIXELS)
        last = p * BANDS + b
    else:  # a run is a plane: its parameters are four scalars
        plane = (pid // tl.cdiv(PIXELS, BLOCK)).to(tl.int64)
        i = pid % tl.cdiv(PIXELS, BLOCK) * BLOCK + tl.arange(0, BLOCK)
        inside = i < PIXELS
        n = plane // BANDS
        band = plane % BANDS
        run = plane * PIXELS
        last = i

    # Of an inactive object only the pixels that have to be written elsewhere are read.
    reads = inside
    if FLAGGED:
        reads = (inside & tl.load(active + n)) != 0  # the interpreter wants the comparison last
    changes = reads
    if MASKED:
        changes = (reads & tl.load(mask + run + i, reads)) != 0

    if IN_PLACE:
        old = tl.load(out + run + i, inside if COPIED else reads)
    else:
        old = tl.load(adv + run + i, inside)
    x = tl.load(x0 + run + i, reads)
    e = tl.load(eps + n * eps_stride + band)
    low = tl.load(lo + n * lo_stride + band)
    high = tl.load(hi + n * hi_stride + band)
    new = old
    if STEPPED:
        g = tl.load(grad + run + i, reads).to(tl.float32)
        sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))  # NaN compares false twice: zero
        new = old + tl.load(step + n * step_stride + band) * sign
    new = clamp(clamp(new, x - e, x + e), low, high)
    if MOMENTUM:
        # d - d / 4 is 3 d / 4 rounded once, and d / 4 is exact: no fused multiply-add changes a bit.
        d = new - old
        new = old + (d - 0.25 * d) + 0.25 * (old - tl.load(previous + run + i, reads))
        new = clamp(clamp(new, x - e, x + e), low, high)
    new = tl.where(changes, new, old)
    tl.store(out + run + i, new, reads if IN_PLACE else inside)
    if COPIED:
        tl.store(copy + n * (BANDS * PIXELS) + last, new.to(tl.bfloat16), inside)


def launch(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
    *,
    previous: Tensor | None = None,
    out: Tensor | None = None,
    copy: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `reference.pgd`.

    Args:
        previous: as in `reference.momentum`, which is computed if it is given.
        out: the tensor to write; None: a new one; `adv` itself: in place.
        copy: (N, B, H, W) bfloat16 channels_last, filled with the result.
        block: pixels a program, a power of two.

    Returns:
        `out`.
    """
    in_place = out is adv
    out = torch.empty_like(x0) if out is None else out
    if x0.numel() == 0:
        return out
    bands, pixels = int(x0.shape[1]), int(x0.shape[2] * x0.shape[3])
    last = checks.is_channels_last(x0)
    tiled = not last and (copy is not None or pixels < PLANE)
    padded = triton.next_power_of_2(bands) if tiled else 1
    run = pixels * (bands if last else 1)
    block = max(1, min(block // padded, triton.next_power_of_2(run)))
    programs = x0.shape[0] * triton.cdiv(run, block) * (1 if last or tiled else bands)
    with checks.on_device(x0):
        wrap_triton(_pgd_kernel)[(programs,)](
            # The kernel does not read a tensor that is None: any other takes its place.
            out,
            x0 if copy is None else copy,
            x0 if in_place else adv,
            x0 if previous is None else previous,
            x0,
            x0 if grad is None else grad,
            eps,
            step,
            lo,
            hi,
            x0 if mask is None else mask,
            x0 if active is None else active,
            *(checks.band_stride(t) for t in (eps, step, lo, hi)),
            BANDS=bands,
            PIXELS=pixels,
            CHANNELS_LAST=last,
            TILED=tiled,
            PADDED=padded,
            STEPPED=grad is not None,
            MOMENTUM=previous is not None,
            MASKED=mask is not None,
            FLAGGED=active is not None,
            IN_PLACE=in_place,
            COPIED=copy is not None,
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
    """`reference.pgd` as a torch operator: the fused kernel on CUDA, the reference elsewhere.

    Returns:
        A new tensor with the layout of x0.

    Raises:
        ValueError: shapes, types, layouts or devices that do not belong together, as in `checks`.
    """
    checks.check_step(adv, x0, grad, eps, step, lo, hi, mask, active)
    if not x0.is_cuda:
        return reference.pgd(adv, x0, grad, eps, step, lo, hi, mask, active)
    return launch(adv, x0, grad, eps, step, lo, hi, mask, active)


# Two operators, not one with `copy: Tensor | None = None`: torch 2.11 drops an argument that has its default
# value and then looks for it among those that are changed (IndexError).
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
    """`pgd` in place: `adv` becomes the result, and no inactive object is read or written.

    Raises:
        ValueError: as `pgd`.
    """
    checks.check_step(adv, x0, grad, eps, step, lo, hi, mask, active)
    if x0.is_cuda:
        launch(adv, x0, grad, eps, step, lo, hi, mask, active, out=adv)
    else:
        adv.copy_(reference.pgd(adv, x0, grad, eps, step, lo, hi, mask, active))


@triton_op("hpcphotoz::pgd_copy_", mutates_args={"adv", "copy"})
def pgd_copy_(
    adv: Tensor,
    copy: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
) -> None:
    """`pgd_copy` in place: `adv` becomes the result, and `copy` the same for a model in bfloat16.

    Args:
        copy: (N, B, H, W) bfloat16 channels_last, filled with the result, inactive objects included.

    Raises:
        ValueError: as `pgd`.
    """
    checks.check_step(adv, x0, grad, eps, step, lo, hi, mask, active)
    checks.check_copy(copy, x0)
    if x0.is_cuda:
        launch(adv, x0, grad, eps, step, lo, hi, mask, active, out=adv, copy=copy)
    else:
        copy.copy_(adv.copy_(reference.pgd(adv, x0, grad, eps, step, lo, hi, mask, active)))


@triton_op("hpcphotoz::pgd_copy", mutates_args={})
def pgd_copy(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    mask: Tensor | None = None,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`pgd`, and a copy of the result for a model in bfloat16.

    Returns:
        The images as `pgd` returns them, and (N, B, H, W) bfloat16 in channels_last memory format.

    Raises:
        ValueError: as `pgd`.
    """
    checks.check_step(adv, x0, grad, eps, step, lo, hi, mask, active)
    copy = torch.empty_like(x0, dtype=torch.bfloat16, memory_format=torch.channels_last)
    if x0.is_cuda:
        return launch(adv, x0, grad, eps, step, lo, hi, mask, active, copy=copy), copy
    out = reference.pgd(adv, x0, grad, eps, step, lo, hi, mask, active)
    return out, copy.copy_(out)


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
    """`reference.momentum` as a torch operator: the fused kernel on CUDA, the reference elsewhere.

    Returns:
        A new tensor with the layout of x0.

    Raises:
        ValueError: as `pgd`.
    """
    checks.check_step(adv, x0, grad, eps, step, lo, hi, mask, active)
    checks.check_images(x0, previous=previous)
    if not x0.is_cuda:
        return reference.momentum(adv, previous, x0, grad, eps, step, lo, hi, mask, active)
    return launch(adv, x0, grad, eps, step, lo, hi, mask, active, previous=previous)
