"""A random start on CPUs, to the bit of `start_reference`; without Triton, whose operators import slowly."""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_GROUPS = 20480  # of four pixels, a thread: with fewer, calls of torch dominate; with more, they leave L2


def start(
    x0: Tensor,
    object_id: Tensor,
    eps: Tensor,
    lo: Tensor,
    hi: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """`start_reference.start` a few objects at a time, in cache: 8 ms for 32 images of 5x64x64, not 17."""
    n, bands = x0.shape[:2]
    out = torch.empty_like(x0)
    if x0.numel() == 0:
        return out
    pixels = x0[0].numel()
    groups = (pixels + 3) // 4
    chunk = min(n, max(1, _GROUPS * torch.get_num_threads() // groups))
    radius, lowest, highest = (t.expand(n, bands)[:, :, None, None] for t in (eps, lo, hi))
    scaled = radius.double() * 2.0**-23
    buffers = torch.empty((3, 2, chunk, groups), dtype=torch.int64)
    words, exact = torch.empty((chunk, groups, 4)).double(), torch.empty((chunk, *x0.shape[1:])).double()
    edge = exact.float()
    for first in range(0, n, chunk):
        rows, left = slice(first, first + chunk), n - first
        x, e, moved, scratch = x0[rows], radius[rows], out[rows], edge[:left]
        _fill(words[:left], object_id[rows], key, buffers[:, :, :left])
        u = words[:left].flatten(1)[:, :pixels].reshape(x.shape)
        moved.copy_(exact[:left].copy_(x).addcmul_(u, scaled[rows]))
        torch.maximum(moved, torch.sub(x, e, out=scratch), out=moved)
        torch.minimum(moved, torch.add(x, e, out=scratch), out=moved)
        torch.minimum(torch.maximum(moved, lowest[rows], out=moved), highest[rows], out=moved)
    return out if mask is None else torch.where(mask, out, x0)


def _fill(words: Tensor, object_id: Tensor, key: Tensor, buffers: Tensor) -> None:
    # The words of the definition's `uniform` less their lowest 8 bits, from -2^23 to 2^23 - 1. The counters
    # are worked on in two pairs, `even` (0 and 2) and `odd` (1 and 3), in place; a round swaps the two of a
    # pair. Bits above 32 matter only where a product is taken.
    even, odd, product = buffers
    even[0], even[1] = torch.arange(even.shape[-1]), (object_id >> 32 & _MASK)[:, None]
    odd[0], odd[1] = object_id[:, None], key[1]
    factor = torch.tensor([0xD2511F53, 0xCD9E8D57])[:, None, None]
    bump = torch.tensor([0x9E3779B9, 0xBB67AE85])[:, None, None]
    whole, mask = torch.stack([key[0], key[0] >> 32])[:, None, None], torch.tensor(_MASK)
    factors = [factor, factor.flip(0)] * 5
    keys = [whole + k * bump for k in range(10)]
    for k in range(10):
        torch.mul(even, factors[k], out=product)
        torch.bitwise_right_shift(product, 32, out=even)
        even[0].bitwise_xor_(odd[1])
        even[1].bitwise_xor_(odd[0])
        even ^= keys[k].flip(0) if k % 2 == 0 else keys[k]
        even &= mask
        odd, product = product, odd
    odd &= mask
    for k, word in enumerate((even[0], odd[0], even[1], odd[1])):
        word >>= 8
        word -= 2**23
        words[..., k] = word
