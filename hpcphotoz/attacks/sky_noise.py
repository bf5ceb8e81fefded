"""Gaussian noise for images, keyed by seed, object and draw: the same on any rank, in any batch.

Uniform numbers are those of random starts (`kernels.attack.start_reference`: Philox, 24 bits a number),
turned into normal ones by Box & Muller. Values beyond 5.77 sigma, of which there are 8e-9, do not occur.
"""

import math

import torch
from torch import Tensor

from hpcphotoz.kernels.backend import kernels_on


def sky_noise(images: Tensor, sky_sigma: Tensor, object_id: Tensor, seed: int, draw: int) -> Tensor:
    """Independent noise of one sky sigma in every pixel, (N, B, H, W) float32 nMgy.

    Args:
        images: (N, B, H, W): shape and device.
        sky_sigma: (N, B) float32, nMgy.
        object_id: (N,) int64.
        seed: 64 bits; derive it from the run's seed and a purpose, by `data.order.derive_key`.
        draw: number of the draw, 0 to 2^32 - 1.
    """
    return sky_sigma[:, :, None, None] * standard_normal(images.shape, object_id, seed, draw)


def standard_normal(shape: torch.Size, object_id: Tensor, seed: int, draw: int) -> Tensor:
    """Standard normal numbers, (N, ...) float32; arguments as `sky_noise`, `shape` that of the result."""
    n, pixels, device = shape[0], shape[1:].numel(), object_id.device
    half = (pixels + 1) // 2
    zero = torch.zeros((n, 1, 2, half), device=device)
    one = torch.ones((n, 1), device=device)
    key = torch.stack(
        [torch.full((), word, dtype=torch.int64, device=device) for word in (_signed(seed), draw)]
    )
    # The random start in a ball of radius 1 around 0 without limits: uniform on [-1, 1), exact in float32.
    u = kernels_on(device.type).start(zero, object_id, one, -torch.inf * one, torch.inf * one, key)[:, 0]
    radius = torch.sqrt(-2 * torch.log((1 - u[:, 0]) / 2))  # (1 - u) / 2 is in (0, 1]
    angle = math.pi * u[:, 1]
    both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return both[:, :pixels].reshape(shape)


def _signed(word: int) -> int:
    """64 bits as torch's int64 holds them."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)
