"""A random start in the L-infinity ball in one pass: reads x0, writes the start.

Definition and references: `start_reference`. The operator `hpcphotoz::start` runs the kernel on CUDA tensors
and `start_on_cpu.start` elsewhere, with the same bits; the kernel itself runs on CPU tensors under
TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.attack.start_on_cpu import start as start_on_cpu
from hpcphotoz.kernels.device_functions import clamp


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


# An operator of its own: tracing a triton_op would look into its chunks.
on_cpu = custom_op("hpcphotoz::start_on_cpu", mutates_args=())(start_on_cpu)


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
