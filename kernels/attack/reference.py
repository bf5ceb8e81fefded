"""The kernels in plain torch: their definition, the CPU path, and what every test compares with.

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

_MASK = 0xFFFFFFFF
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


def start(
    x0: Tensor,
    object_id: Tensor,
    eps: Tensor,
    lo: Tensor,
    hi: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """A random start in the L-infinity ball, the same on any device, in any batch, at any world size.

    x' = clamp(clamp(x0 + eps u, x0 - eps, x0 + eps), lo, hi),  u = uniform(x0.shape, object_id, key)

    eps u is exact in float64, so that a fused multiply-add gives the same bits as a product and a sum.

    Args:
        object_id: (N,) int64.
        key: (2,) int64, (seed, epoch): a tensor, so that a CUDA graph reads its value at each replay.
    """
    u = uniform(x0.shape, object_id, key)
    moved = (x0.double() + _per_pixel(eps).double() * u.double()).float()
    return _keep(x0, _inside(moved, x0, eps, lo, hi), mask, None)


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


def uniform(shape: torch.Size, object_id: Tensor, key: Tensor) -> Tensor:
    """Uniform numbers on [-1, 1) for each object, (N, ...) float32.

    Pixel i of an object, counted in (B, H, W) order, takes word i % 4 of Philox with counter (i // 4, object
    id low, high, epoch) and the seed as key.

    Args:
        shape: (N, ...), shape of the result.
        object_id: (N,) int64.
        key: (2,) int64, (seed, epoch).
    """
    pixels = shape[1:].numel()
    index = torch.arange((pixels + 3) // 4, device=object_id.device)
    low, high = (object_id & _MASK)[:, None], ((object_id >> 32) & _MASK)[:, None]
    seed, epoch = key[0], key[1] & _MASK
    words = torch.stack(philox((index, low, high, epoch), (seed & _MASK, seed >> 32 & _MASK)), -1)
    return ((words >> 8).float() * 2.0**-23 - 1).flatten(1)[:, :pixels].reshape(shape)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405): 32-bit words held in int64 tensors."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    k0, k1 = key
    for _ in range(10):
        low0, high0 = _multiply(0xD2511F53, c0)
        low1, high1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # Of two unsigned 32-bit words. Wrapping around 2^64 changes the sign, not the bits.
    product = a * b
    return product & _MASK, (product >> 32) & _MASK


def dihedral(images: Tensor, code: Tensor) -> Tensor:
    """Flip and rotate each image by one of the eight symmetries of the square.

    Args:
        images: (N, B, H, W) with H = W.
        code: (N,) int64 in 0..7: bit 0 flips x, bit 1 flips y, bit 2 swaps x and y afterwards.
    """
    bit = [(code >> k & 1).bool()[:, None, None, None] for k in range(3)]
    images = torch.where(bit[0], images.flip(-1), images)
    images = torch.where(bit[1], images.flip(-2), images)
    return torch.where(bit[2], images.transpose(-1, -2), images)


def load(images: Tensor, scale: Tensor | None, code: Tensor | None) -> Tensor:
    """Decode stored pixels for a network: flip or rotate, scale, convert to float32; always a new tensor.

    Args:
        images: (N, B, H, W) contiguous float32, float16 or int16.
        scale: (N, B) float32, nMgy of a unit; None: one. Negative for int16 images: pixels are `curved`.
        code: (N,) int64, a symmetry of the square each, as in `dihedral` (then H = W); None: unchanged.

    Returns:
        (N, B, H, W) float32 in channels_last memory format.
    """
    out = channels_last(images)
    turned = images if code is None else dihedral(images, code)
    if scale is None:
        return out.copy_(turned)
    unit = scale[:, :, None, None]
    if images.dtype != torch.int16:
        return torch.mul(turned, unit, out=out)
    return out.copy_(torch.where(unit < 0, curved(turned, unit), turned * unit))


LINEAR, CURVE = 16384, 256  # of the int16 code, see `curved`


def curved(stored: Tensor, scale: Tensor) -> Tensor:
    """Flux of int16 numbers c whose steps grow beyond LINEAR.

    |scale| (c + sign(c) max(|c| - LINEAR, 0)^2 / CURVE)

    Args:
        stored: (..., H, W) int16.
        scale: (..., 1, 1) float32, negative: -nMgy of a unit.

    Returns:
        (..., H, W) float32 nMgy: exact in 32-bit integers, rounded once by the product.
    """
    number = stored.int()
    beyond = (number.abs() - LINEAR).clamp(min=0)
    return (number * CURVE + number.sign() * beyond * beyond).float() * (scale / -CURVE)


def channels_last(images: Tensor) -> Tensor:
    """Empty float32 tensor of the images' shape in channels_last memory format."""
    return torch.empty(
        images.shape, dtype=torch.float32, device=images.device, memory_format=torch.channels_last
    )


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
