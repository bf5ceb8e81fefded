"""Decodes stored pixels for a network in one pass over memory: scale, flip or rotate, float32, channels_last.

Definition: `reference.load`. The operator `hpcphotoz::load` runs the kernel on CUDA tensors and
`load_on_cpu.load` elsewhere; the kernel itself runs on CPU tensors under TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from hpcphotoz.kernels import checks, reference
from hpcphotoz.kernels.load_on_cpu import load as load_on_cpu

STORED = (torch.float32, torch.float16, torch.int16)
LINEAR, CURVE = tl.constexpr(reference.LINEAR), tl.constexpr(reference.CURVE)
BACK = tl.constexpr(-1.0 / reference.CURVE)  # a power of two: exact, as a quotient on a GPU need not be


@triton.jit  # type: ignore[untyped-decorator]
def _load_kernel(  # type: ignore[no-untyped-def]
    out,
    images,
    scale,
    code,
    bands,
    height,
    width,
    SCALED: tl.constexpr,
    CURVED: tl.constexpr,  # int16, whose steps grow where the scale is negative: `reference.curved`
    TURNED: tl.constexpr,
    BANDS: tl.constexpr,
    TILE: tl.constexpr,
):
    # A square of pixels times all bands a program. Neighbouring pixels are read together and the bands of a
    # pixel written together, whatever the symmetry: both runs are known to the compiler.
    n = tl.program_id(0).to(tl.int64)  # N B H W passes 2^31 elements at survey batch sizes
    across = tl.cdiv(width, TILE)
    i = tl.arange(0, TILE * TILE)
    y = tl.program_id(1) // across * TILE + i // TILE
    x = tl.program_id(1) % across * TILE + i % TILE
    b = tl.arange(0, BANDS)
    inside = ((y < height) & (x < width))[:, None] & (b < bands)[None, :]
    image = n * bands * height * width
    flux = tl.load(images + image + b[None, :] * height * width + (y * width + x)[:, None], inside)
    if SCALED:
        unit = tl.load(scale + n * bands + b, b < bands, 0.0)[None, :]
        straight = flux.to(tl.float32) * unit
        if CURVED:
            number = flux.to(tl.int32)
            beyond = tl.maximum(tl.abs(number) - LINEAR, 0)
            number = number * CURVE + tl.where(number < 0, -beyond * beyond, beyond * beyond)
            straight = tl.where(unit < 0, number.to(tl.float32) * (unit * BACK), straight)
        flux = straight
    else:
        flux = flux.to(tl.float32)
    if TURNED:
        turn = tl.load(code + n)
        x = tl.where((turn & 1) == 1, width - 1 - x, x)
        y = tl.where((turn & 2) == 2, height - 1 - y, y)
        at = tl.where((turn & 4) == 4, x * width + y, y * width + x)
    else:
        at = y * width + x
    tl.store(out + image + at[:, None] * bands + b[None, :], flux, inside)


def launch(images: Tensor, scale: Tensor | None, code: Tensor | None, tile: int = 16) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `reference.load`."""
    n, bands, height, width = images.shape
    out = reference.channels_last(images)
    if images.numel() == 0:
        return out
    grid = (n, triton.cdiv(height, tile) * triton.cdiv(width, tile))
    with checks.on_device(images):
        wrap_triton(_load_kernel)[grid](
            out,
            images,
            images if scale is None else scale,
            images if code is None else code,
            bands,
            height,
            width,
            SCALED=scale is not None,
            CURVED=images.dtype == torch.int16,
            TURNED=code is not None,
            BANDS=triton.next_power_of_2(bands),
            TILE=tile,
        )
    return out


# An operator of its own: tracing a triton_op would look into its loop over images, whose codes are numbers.
on_cpu = custom_op("hpcphotoz::load_on_cpu", mutates_args=())(load_on_cpu)


@on_cpu.register_fake
def _like_on_cpu(images: Tensor, *_: Tensor | None) -> Tensor:
    return reference.channels_last(images)


@triton_op("hpcphotoz::load", mutates_args={})
def load(images: Tensor, scale: Tensor | None, code: Tensor | None) -> Tensor:
    """`reference.load` as a torch operator: the fused kernel on CUDA, `on_cpu` elsewhere.

    Raises:
        ValueError: shapes or types that do not belong together, tensors that are not contiguous or on several
            devices, or a symmetry of images that are not square.
    """
    _check(images, scale, code)
    found: Tensor = (on_cpu if images.device.type != "cuda" else launch)(images, scale, code)
    return found


def _check(images: Tensor, scale: Tensor | None, code: Tensor | None) -> None:
    if images.ndim != 4 or images.dtype not in STORED or not images.is_contiguous():
        raise ValueError(
            f"images {tuple(images.shape)} {images.dtype}: want contiguous (N, B, H, W) of "
            + ", ".join(str(dtype) for dtype in STORED)
        )
    n, bands, height, width = images.shape
    if code is not None and height != width:
        raise ValueError(f"images {height} x {width}: only squares are flipped and rotated")
    for name, tensor, shape, dtype in (
        ("scale", scale, (n, bands), torch.float32),
        ("code", code, (n,), torch.int64),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(f"{name} {tuple(tensor.shape)} {tensor.dtype}: want contiguous {shape} {dtype}")
        if tensor.device != images.device:
            raise ValueError(f"{name} is on {tensor.device} and the images are on {images.device}")
