"""Random starts in plain torch: their definition, and their random numbers, keyed by seed, epoch and object.

Shapes and types are those of `reference`.
"""

import torch
from torch import Tensor

from hpcphotoz.kernels.attack.reference import pgd

_MASK = 0xFFFFFFFF


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
    moved = (x0.double() + eps[..., None, None].double() * u.double()).float()
    inside = pgd(moved, x0, None, eps, eps, lo, hi)
    return inside if mask is None else torch.where(mask, inside, x0)


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
