"""The L-infinity PGD step as one kernel: 4 image-sized passes over memory, where eager torch takes about 17.

Definition and references: `reference.pgd`. The operator `hpcphotoz::pgd` runs the kernel on CUDA tensors and
the reference elsewhere; the kernel itself runs on CPU tensors under TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from hpcphotoz.kernels import reference


@triton.jit  # type: ignore[untyped-decorator]
def _pgd_kernel(  # type: ignore[no-untyped-def]
    out, adv, x0, grad, eps, step, lo, hi, bands, pixels, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr
):
    # One row of programs an object: int64 because N B H W passes 2^31 elements at survey batch sizes.
    n = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < bands * pixels
    band = i % bands if CHANNELS_LAST else i // pixels
    at = n * bands * pixels + i
    x = tl.load(x0 + at, inside)
    g = tl.load(grad + at, inside, 0.0).to(tl.float32)
    e = tl.load(eps + n * bands + band, inside).to(tl.float32)
    s = tl.load(step + n * bands + band, inside).to(tl.float32)
    sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))  # NaN compares false twice: zero
    moved = tl.load(adv + at, inside) + s * sign
    ball = tl.minimum(tl.maximum(moved, x - e), x + e)
    bounded = tl.minimum(tl.maximum(ball, tl.load(lo + band, inside)), tl.load(hi + band, inside))
    tl.store(out + at, bounded, inside)


def launch(
    adv: Tensor,
    x0: Tensor,
    grad: Tensor,
    eps: Tensor,
    step: Tensor,
    lo: Tensor,
    hi: Tensor,
    block: int = 1024,
) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `reference.pgd`."""
    n, bands, height, width = x0.shape
    out = torch.empty_like(x0)
    if x0.numel() == 0:
        return out
    last = not x0.is_contiguous()
    grid = (n, triton.cdiv(bands * height * width, block))
    wrap_triton(_pgd_kernel)[grid](
        out, adv, x0, grad, eps, step, lo, hi, bands, height * width, CHANNELS_LAST=last, BLOCK=block
    )
    return out


@triton_op("hpcphotoz::pgd", mutates_args={})
def pgd(adv: Tensor, x0: Tensor, grad: Tensor, eps: Tensor, step: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """`reference.pgd` as a torch operator: the fused kernel on CUDA, the reference elsewhere.

    Raises:
        ValueError: shapes that do not belong together, images that are not float32, or images that are
            neither
            contiguous nor channels_last in the same way.
    """
    _check(adv, x0, grad, eps, step, lo, hi)
    if x0.device.type != "cuda":
        return reference.pgd(adv, x0, grad, eps, step, lo, hi)
    return launch(adv, x0, grad, eps, step, lo, hi)


def _check(adv: Tensor, x0: Tensor, grad: Tensor, eps: Tensor, step: Tensor, lo: Tensor, hi: Tensor) -> None:
    if x0.ndim != 4 or adv.shape != x0.shape or grad.shape != x0.shape:
        raise ValueError(
            f"adv {tuple(adv.shape)}, x0 {tuple(x0.shape)}, grad {tuple(grad.shape)}: want one (N, B, H, W)"
        )
    if adv.dtype != torch.float32 or x0.dtype != torch.float32:
        raise ValueError(
            f"adv {adv.dtype}, x0 {x0.dtype}: images are float32 (the gradient may be of less precision)"
        )
    for name, tensor, shape in (("eps", eps, x0.shape[:2]), ("step", step, x0.shape[:2])):
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(f"{name} {tuple(tensor.shape)}: want contiguous (N, B) = {tuple(shape)}")
    for name, tensor in (("lo", lo), ("hi", hi)):
        if tensor.shape != x0.shape[1:2] or not tensor.is_contiguous():
            raise ValueError(f"{name} {tuple(tensor.shape)}: want contiguous (B,) = ({x0.shape[1]},)")
    same = (torch.contiguous_format, torch.channels_last)
    if not any(all(t.is_contiguous(memory_format=f) for t in (adv, x0, grad)) for f in same):
        raise ValueError(
            "adv, x0 and grad must all be contiguous, or all channels_last: call .contiguous() first"
        )
