"""Decoding stored pixels in plain torch: the definition of `load`, and the path without Triton."""

import torch
from torch import Tensor


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
