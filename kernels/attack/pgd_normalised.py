"""The L-infinity step of PGD and the normalisation of the next pass as one kernel.

Definition: `pgd_normalised_reference`. This is all that lies between two passes of a network behind its
normalisation: 18.4 bytes a pixel and band, of five bands in eight channels of bfloat16. The operator runs the
kernel on CUDA tensors and the reference elsewhere; the kernel itself runs on CPU tensors under
TRITON_INTERPRET=1.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.attack import pgd_normalised_reference as reference
from hpcphotoz.kernels.checks import StepArguments
from hpcphotoz.kernels.device_functions import clamp, sign

BLOCK = 2048  # numbers a program, a power of two
NORMALISATIONS = ("", "asinh", "sqrt")  # the number that the kernel knows each by


@triton.jit  # type: ignore[untyped-decorator]
def _pgd_normalised_kernel(  # type: ignore[no-untyped-def]
    adv,
    seen,
    x0,
    grad,
    eps,
    step,
    lo,
    hi,
    scale,
    mask,
    eps_stride,
    step_stride,
    lo_stride,
    hi_stride,
    BANDS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    STEPPED: tl.constexpr,
    MASKED: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # BLOCK pixels of an object, WIDTH lanes each: BANDS numbers of an image, CHANNELS of what a network sees.
    n = (tl.program_id(0) // tl.cdiv(PIXELS, BLOCK)).to(tl.int64)  # N B H W passes 2^31 elements
    p = (tl.program_id(0) % tl.cdiv(PIXELS, BLOCK) * BLOCK + tl.arange(0, BLOCK))[:, None]
    c = tl.arange(0, WIDTH)[None, :]
    inside = (p < PIXELS) & (c < BANDS)
    band = tl.minimum(c, BANDS - 1)
    at = n * (BANDS * PIXELS) + p * BANDS + c
    to = n * (CHANNELS * PIXELS) + p * CHANNELS + c

    new = tl.load(adv + at, inside)
    if STEPPED:
        old = new
        x = tl.load(x0 + at, inside)
        g = tl.load(grad + to, inside).to(tl.float32)
        e = tl.load(eps + n * eps_stride + band)
        new = old + tl.load(step + n * step_stride + band) * sign(g)
        new = clamp(new, x - e, x + e)
        new = clamp(new, tl.load(lo + n * lo_stride + band), tl.load(hi + n * hi_stride + band))
        if MASKED:
            new = tl.where((inside & tl.load(mask + at, inside)) != 0, new, old)
        tl.store(adv + at, new, inside)
    if KIND != 0:
        z = new
        if KIND == 1:
            z = tl.div_rn(new, tl.load(scale + band))
            size = tl.log(tl.sqrt_rn(z * z + 1.0) + tl.abs(z))
            z = tl.where(z < 0, -size, size)
        else:
            z = tl.div_rn(new, tl.sqrt_rn(tl.abs(new) + 1.0) + 1.0)
        z = tl.where(inside, z, 0.0)
        tl.store(seen + to, z.to(seen.dtype.element_ty), (p < PIXELS) & (c < CHANNELS))


def launch(given: StepArguments, seen: Tensor, scale: Tensor, kind: str, block: int = BLOCK) -> None:
    """Run the kernel itself, on any device: `reference.pgd_normalised`; the gradient is like `seen`."""
    x0 = given.x0
    if x0.numel() == 0:
        return
    bands, channels, pixels = int(x0.shape[1]), int(seen.shape[1]), int(x0.shape[2] * x0.shape[3])
    width = triton.next_power_of_2(channels)
    block = max(1, min(block // width, triton.next_power_of_2(pixels)))
    limits = given.eps, given.step, given.lo, given.hi
    with checks.on_device(x0):
        wrap_triton(_pgd_normalised_kernel)[(x0.shape[0] * triton.cdiv(pixels, block),)](
            given.adv,
            seen,
            x0,
            x0 if given.grad is None else given.grad,
            *limits,
            scale,
            x0 if given.mask is None else given.mask,
            *(checks.band_stride(values) for values in limits),
            BANDS=bands,
            CHANNELS=channels,
            PIXELS=pixels,
            STEPPED=given.grad is not None,
            MASKED=given.mask is not None,
            KIND=NORMALISATIONS.index(kind),
            WIDTH=width,
            BLOCK=block,
        )


@triton_op("hpcphotoz::pgd_normalised", mutates_args={"adv", "seen"})
def pgd_normalised(
    adv: Tensor,
    seen: Tensor,
    x0: Tensor,
    grad: Tensor | None,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    scale: Tensor,
    kind: str,
    mask: Tensor | None = None,
) -> None:
    """The torch operator: the kernel on CUDA, `reference.pgd_normalised` elsewhere; images are channels_last.

    Raises:
        ValueError: as `checks`; another kind of normalisation, or images that are not channels_last.
    """
    given = StepArguments(adv, x0, None, eps, step, lo, hi, mask).checked()._replace(grad=grad)
    checks.check_seen(x0, seen, grad, scale)
    if kind not in NORMALISATIONS:
        raise ValueError(f"kind '{kind}': want one of {', '.join(map(repr, NORMALISATIONS))}")
    if x0.is_cuda:
        launch(given, seen, scale, kind)
    else:
        reference.pgd_normalised(adv, seen, x0, grad, eps, step, lo, hi, scale, kind, mask)
