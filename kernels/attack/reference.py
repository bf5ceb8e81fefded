"""The steps of an attack in plain torch, and `select`: their definition, the CPU path, the tests' oracle.

Shared shapes and types:

    x0, adv, ...    (N, B, H, W) float32, nMgy: the original and the attacked images
    grad            (N, B, H, W) of float32, bfloat16 or float16: the gradient of the loss; NaN counts as
                    zero, sign(0) = 0; None: no step is taken, the images are only projected
    eps, step       (B,) or (N, B) float32, nMgy: radius of the ball and length of the step, per band or per
                    object and band
    lo, hi          (B,) or (N, B) float32, nMgy: lowest and highest flux of a pixel; may be infinite
    mask            (N, B, H, W) bool: which pixels may change; None: all
    active          (N,) bool: which objects may change; None: all

Pixels and objects that may not change stay as they are in `adv`. The bounds win over the ball where x0 lies
outside them.
"""

from typing import Any

import torch
from torch import Tensor

_BISECTIONS = 40  # of an interval that two of the changes span: 2^-40 of it is far below an ulp


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
    """One signed ascent step in an L-infinity ball (Madry et al. 2018, arXiv:1706.06083).

    x' = clamp(clamp(adv + step sign(grad), x0 - eps, x0 + eps), lo, hi)
    """
    moved = adv if grad is None else adv + _per_pixel(step) * _finite(grad).sign()
    return _keep(adv, _inside(moved, x0, eps, lo, hi), mask, active)


def pgd_in_place(adv: Tensor, *given: Any) -> None:
    """`pgd` in the memory of `adv`; arguments as there."""
    adv.copy_(pgd(adv, *given))


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
    """The step of APGD (Croce & Hein 2020, arXiv:2003.01690, eq. 2, with its momentum of 0.75).

    z = pgd(adv, ...),  x' = P(adv + 0.75 (z - adv) + 0.25 (adv - previous)),  P: ball, then bounds

    Args:
        previous: (N, B, H, W) float32, nMgy: the images before `adv`.
    """
    z = pgd(adv, x0, grad, eps, step, lo, hi)
    mixed = adv + 0.75 * (z - adv) + 0.25 * (adv - previous)
    return _keep(adv, _inside(mixed, x0, eps, lo, hi), mask, active)


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
    """One step of steepest ascent in the ellipsoid |delta / eps|_2 <= 1, scaled back along the radius.

    With eps = r sky_sigma it is the ball of r sigma in noise-weighted flux; with one eps in all bands, the
    L2 ball of PGD-L2 (Madry et al. 2018). The step is the one that raises the loss most among those with
    |d / step|_2 <= 1: d = step^2 grad / |step grad|_2. Where eps is 0 nothing changes.

    x' = clamp(x0 + delta / max(1, |delta / eps|_2), lo, hi),  delta = adv + d - x0
    """
    moved = adv
    if grad is not None:
        moved = adv + _per_pixel(step) * _unit(_masked(_per_pixel(step) * _finite(grad), mask))
    open_ = (_per_pixel(eps) > 0).expand_as(x0)
    delta = _masked(moved - x0, open_ if mask is None else open_ & mask)
    scaled = torch.where(open_, delta / _per_pixel(eps), 0)
    norm = torch.linalg.vector_norm(scaled, dim=(1, 2, 3), keepdim=True)
    drawn = torch.where(norm > 1, x0 + delta / norm, torch.where(open_, moved, x0))
    return _keep(adv, _bounded(drawn, lo, hi), mask, active)


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
    """One step in the flux-conserving ball, |delta| <= eps per pixel and sum(delta) = 0 per object and band.

    The flux in an aperture that contains the stamp does not change. The step
    d = step sign(grad - median(grad)), with the lower median over the pixels of an object and band that may
    change, raises the loss most among those with |d| <= step and sum(d) = 0 (except for the median pixel
    itself). The projection is the Euclidean one: a shift tau per object and band with
    delta = clamp(adv + d - x0 - tau, low, high), found by bisection, because the sum falls as tau grows.
    [low, high] is the ball cut by the bounds; it always holds 0, so that a pixel of x0 outside the bounds
    moves no further out. Pixels that the mask excludes count as unchanged.
    """
    box = [_per_pixel(t) for t in (eps, lo, hi)]
    low = _masked(torch.maximum(-box[0], box[1] - x0).clamp(max=0), mask)
    high = _masked(torch.minimum(box[0], box[2] - x0).clamp(min=0), mask)
    moved = adv if grad is None else adv + _per_pixel(step) * _centred(_finite(grad), mask).sign()
    delta = _masked(moved - x0, mask)
    left, right = delta.amin((2, 3), True), delta.amax((2, 3), True)  # [low, high] holds 0
    for _ in range(_BISECTIONS):
        tau = 0.5 * (left + right)
        above = (delta - tau).clamp(low, high).sum((2, 3), keepdim=True) > 0
        left, right = torch.where(above, tau, left), torch.where(above, right, tau)
    drawn = x0 + (delta - 0.5 * (left + right)).clamp(low, high)
    drawn = torch.minimum(torch.maximum(drawn, torch.minimum(box[1], x0)), torch.maximum(box[2], x0))
    return _keep(adv, drawn, mask, active)  # x0 + (hi - x0) may round to just above hi


def select(best: Tensor, best_loss: Tensor, adv: Tensor, loss: Tensor) -> Tensor:
    """Keep the best image of each object so far; a loss that is NaN is never better.

    Args:
        best: (N, B, H, W) float32, changed in place where `loss > best_loss`.
        best_loss, loss: (N,) float32.
        adv: (N, B, H, W) float32, images that replace those in `best`.

    Returns:
        The new best loss, (N,) float32.
    """
    better = loss > best_loss
    best.copy_(torch.where(better[:, None, None, None], adv, best))
    return torch.where(better, loss, best_loss)


def _inside(moved: Tensor, x0: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    # In the ball, then in the bounds.
    radius = _per_pixel(eps)
    return _bounded(torch.minimum(torch.maximum(moved, x0 - radius), x0 + radius), lo, hi)


def _bounded(images: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(images, _per_pixel(lo)), _per_pixel(hi))


def _keep(adv: Tensor, moved: Tensor, mask: Tensor | None, active: Tensor | None) -> Tensor:
    # Pixels and objects that may not change stay as they are.
    moved = moved if mask is None else torch.where(mask, moved, adv)
    return moved if active is None else torch.where(active[:, None, None, None], moved, adv)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else torch.where(mask, values, 0)


def _finite(grad: Tensor) -> Tensor:
    return torch.nan_to_num(grad.float())


def _unit(direction: Tensor) -> Tensor:
    # Divide by the largest first: squares of a gradient of 1e-25, or of 1e25, are not float32 numbers.
    direction = torch.nan_to_num(direction)
    largest = direction.abs().amax((1, 2, 3), keepdim=True)
    scaled = torch.where(largest > 0, direction / largest, 0)
    norm = torch.linalg.vector_norm(scaled, dim=(1, 2, 3), keepdim=True).clamp(min=1)  # 0 where all is 0
    unit: Tensor = scaled / norm
    return unit


def _centred(grad: Tensor, mask: Tensor | None) -> Tensor:
    # Subtract the median per object and band; 0 where the mask leaves no pixel.
    known = grad if mask is None else torch.where(mask, grad, torch.nan)
    return grad - torch.nan_to_num(known.flatten(2).nanmedian(dim=2).values[..., None, None])


def _per_pixel(values: Tensor) -> Tensor:
    # (B,) or (N, B), to broadcast against images.
    return values[..., None, None]
