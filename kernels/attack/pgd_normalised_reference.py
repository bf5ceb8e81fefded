"""The step of PGD and the normalisation of the next pass in plain torch: their definition, and the CPU path.

Shapes and types are those of `reference`.
"""

import torch
from torch import Tensor

from hpcphotoz.kernels.attack.reference import pgd


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
    """`pgd` by the gradient of the normalised images, and the normalised images of the next pass; in place.

    The normalisation rises with the flux: both gradients have the same signs (a product that is too small
    for float32 aside), so that nothing goes back through it.

    Args:
        adv: becomes `pgd(adv, ...)`.
        seen: (N, C, H, W) as `normalised` returns it: what the network has read becomes what it reads next.
        grad: like `seen`, the gradient with respect to it; None: `adv` stays as it is.
        scale: (B,) float32, nMgy.
        kind: as in `normalised`; "": no pass follows, and `seen` stays as it is.
    """
    if grad is not None:
        adv.copy_(pgd(adv, x0, grad[:, : x0.shape[1]], eps, step, lo, hi, mask))
    if kind:
        seen.copy_(normalised(adv, scale, kind, seen.dtype, seen.shape[1]))


def normalised(images: Tensor, scale: Tensor, kind: str, dtype: torch.dtype, channels: int) -> Tensor:
    """Images as a first convolution reads them: normalised in float32, then rounded.

    Args:
        images: (N, B, H, W) float32, nMgy.
        scale: (B,) float32, nMgy: the softening of "asinh".
        kind: "asinh": asinh(x / scale); "sqrt": sign(x)(sqrt(|x| + 1) - 1).
        dtype: of the result.
        channels: of the result, C >= B: those beyond the bands are 0.

    Returns:
        (N, C, H, W) in channels_last memory format.
    """
    if kind == "asinh":
        x = images / scale[:, None, None]
        x = torch.square(x).add_(1).sqrt_().add_(x.abs()).log_().copysign_(x)
    else:
        x = images / (torch.sqrt(images.abs() + 1) + 1)
    out = torch.nn.functional.pad(x.to(dtype), (0, 0, 0, 0, 0, channels - x.shape[1]))
    return out.contiguous(memory_format=torch.channels_last)
