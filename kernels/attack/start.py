"""A random start in the L-infinity ball in one pass: reads x0, writes the start.

Definition and references: `start_reference`. The operator `hpcphotoz::start` runs the kernel on CUDA tensors
and `on_cpu` elsewhere, with the same bits; the kernel itself runs on CPU tensors under TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.device_functions import clamp

_MASK = 0xFFFFFFFF
_GROUPS = 20480  # of four pixels, a thread: with fewer, calls of torch dominate; with more, they leave L2


@triton.jit  # type: ignore[untyped-decorator]
def _start_kernel(  # type: ignore[no-untyped-def]
    out,
    x0,
    object_id,
    eps,
    lo,
    hi,
    key,
    mask,
    eps_stride,
    lo_stride,
    hi_stride,
    BANDS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    MASKED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    # Four pixels a Philox call, counted in (B, H, W) order whatever the layout.
    blocks = tl.cdiv(BANDS * PIXELS, 4 * GROUPS)
    n = (tl.program_id(0) // blocks).to(tl.int64)  # N B H W passes 2^31 elements at survey batch sizes
    block = tl.program_id(0) % blocks
    identifier = tl.load(object_id + n)
    group = block * GROUPS + tl.arange(0, GROUPS)
    epoch = tl.load(key + 1).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        tl.load(key), group, identifier.to(tl.uint32), (identifier >> 32).to(tl.uint32), epoch
    )
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))

    i = block * (4 * GROUPS) + tl.arange(0, 4 * GROUPS)
    inside = i < BANDS * PIXELS
    band = i // PIXELS
    at = n * (BANDS * PIXELS) + (i % PIXELS * BANDS + band if CHANNELS_LAST else i)
    x = tl.load(x0 + at, inside)
    e = tl.load(eps + n * eps_stride + band, inside)
    u = (words >> 8).to(tl.float64) * 1.1920928955078125e-07 - 1  # 2^-23
    moved = (x.to(tl.float64) + e.to(tl.float64) * u).to(tl.float32)
    moved = clamp(moved, x - e, x + e)
    lowest = tl.load(lo + n * lo_stride + band, inside)
    highest = tl.load(hi + n * hi_stride + band, inside)
    moved = clamp(moved, lowest, highest)
    if MASKED:
        moved = tl.where(tl.load(mask + at, inside) != 0, moved, x)
    tl.store(out + at, moved, inside)


def launch(
    x0: Tensor,
    object_id: Tensor,
    eps: Tensor,
    lo: Tensor,
    hi: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    groups: int = 256,
) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `start_reference.start`."""
    n, bands, height, width = x0.shape
    out = torch.empty_like(x0)
    if x0.numel() == 0:
        return out
    programs = n * triton.cdiv(bands * height * width, 4 * groups)
    with checks.on_device(x0):
        wrap_triton(_start_kernel)[(programs,)](
            out,
            x0,
            object_id,
            eps,
            lo,
            hi,
            key,
            x0 if mask is None else mask,
            *(checks.band_stride(t) for t in (eps, lo, hi)),
            BANDS=int(bands),
            PIXELS=int(height * width),
            CHANNELS_LAST=checks.is_channels_last(x0),
            MASKED=mask is not None,
            GROUPS=groups,
        )
    return out


@custom_op("hpcphotoz::start_on_cpu", mutates_args=())
def on_cpu(
    x0: Tensor,
    object_id: Tensor,
    eps: Tensor,
    lo: Tensor,
    hi: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """The definition a few objects at a time, in cache: 8 ms for 32 images of 5 x 64 x 64, not 17."""
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


@on_cpu.register_fake
def _like_on_cpu(x0: Tensor, *_: Tensor | None) -> Tensor:
    return torch.empty_like(x0)


@triton_op("hpcphotoz::start", mutates_args={})
def start(
    x0: Tensor,
    object_id: Tensor,
    eps: Tensor,
    lo: Tensor,
    hi: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """The torch operator: the kernel on CUDA, `on_cpu` elsewhere; `checks` raises ValueError."""
    checks.check_images(x0)
    checks.check_vector("object_id", object_id, x0, torch.int64)
    for name, values in (("eps", eps), ("lo", lo), ("hi", hi)):
        checks.check_per_band(name, values, x0)
    checks.check_key(key, x0)
    checks.check_mask(mask, x0)
    found: Tensor = (on_cpu if x0.device.type != "cuda" else launch)(x0, object_id, eps, lo, hi, key, mask)
    return found
