"""Plain torch definitions of the kernels: the definition, the CPU path and the oracle of every test."""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def pgd(adv: Tensor, x0: Tensor, grad: Tensor, eps: Tensor, step: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """One signed ascent step, projected onto the L-infinity ball and the bounds (Madry et al. 2018,
    arXiv:1706.06083).

    x' = clamp(clamp(adv + step sign(grad), x0 - eps, x0 + eps), lo, hi)

    The bounds win over the ball where x0 lies outside them. A NaN gradient counts as zero; sign(0) = 0.

    Args:
        adv, x0, grad: (N, B, H, W), the current and the original images (float32, nMgy) and the loss
            gradient.
        eps, step: (N, B) float32, radius and step per object and band, nMgy.
        lo, hi: (B,) float32, smallest and largest flux allowed per band, nMgy; may be infinite.
    """
    eps, step = eps[:, :, None, None], step[:, :, None, None]
    moved = adv + step * torch.nan_to_num(grad.float()).sign()
    ball = torch.minimum(torch.maximum(moved, x0 - eps), x0 + eps)
    return torch.minimum(torch.maximum(ball, lo[:, None, None]), hi[:, None, None])


def uniform(shape: torch.Size, object_id: Tensor, seed: int, epoch: int) -> Tensor:
    """Uniform numbers on [-1, 1) for each object, the same on any device, in any batch, at any world size.

    Pixel i of an object takes word i % 4 of Philox with counter (i // 4, object id low, high, epoch).

    Args:
        shape: (N, ...), what is filled; float32.
        object_id: (N,) int64.
        seed, epoch: key of the generator.
    """
    n, pixels = shape[0], shape[1:].numel()
    index = torch.arange((pixels + 3) // 4, device=object_id.device)
    low, high = (object_id & _MASK)[:, None], ((object_id >> 32) & _MASK)[:, None]
    words = torch.stack(
        philox((index, low, high, torch.tensor(epoch).to(index)), (seed & _MASK, seed >> 32 & _MASK)), -1
    )
    return ((words >> 8).float() * 2.0**-23 - 1).reshape(n, -1)[:, :pixels].reshape(shape)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405): four 32-bit words held in int64
    tensors.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    k0, k1 = key
    for _ in range(10):
        low0, high0 = _multiply(0xD2511F53, c0)
        low1, high1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # a b overflows int64, so its halves are formed from 16-bit pieces of b: every term stays below 2^49.
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + high
    return ((middle & 0xFFFF) << 16) | (low & 0xFFFF), middle >> 16


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
    """What a network reads, from pixels as they are stored: turned, scaled and cast; always a new tensor.

    Args:
        images: (N, B, H, W) contiguous float32, float16 or int16.
        scale: (N, B) float32, nMgy of a unit; None: one.
        code: (N,) int64, a symmetry of the square each, as in `dihedral` (then H = W); None: as they are.

    Returns:
        (N, B, H, W) float32 in channels_last memory format.
    """
    out = channels_last(images)
    turned = images if code is None else dihedral(images, code)
    return out.copy_(turned) if scale is None else torch.mul(turned, scale[:, :, None, None], out=out)


def channels_last(images: Tensor) -> Tensor:
    """Room for the images as float32 in channels_last memory format."""
    return torch.empty(
        images.shape, dtype=torch.float32, device=images.device, memory_format=torch.channels_last
    )
