"""Where the numbers of an activation lie in memory, and how the programs of a kernel share them.

A program has a tile of ROWS pixels by COLUMNS channels: neighbouring channels of each pixel where memory is
channels_last, one channel where it is contiguous. In both, one stride gives all places: from a pixel to the
next in channels_last memory, from an object to the next in contiguous memory.
"""

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.network.reference import POOLINGS

BLOCK = 1024  # numbers of a tile
COLUMNS = 32  # channels of a tile in channels_last memory: 128 bytes in float32
NONE, HALVE, SMOOTH, SMOOTH_EDGE = (tl.constexpr(k) for k in range(len(POOLINGS)))


@triton.jit  # type: ignore[untyped-decorator]
def place(n, pixel, channel, stride, pixels, CHANNELS_LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    # `n` is int64: N C H W passes 2^31 elements.
    if CHANNELS_LAST:
        at = (n * pixels + pixel) * stride + channel
    else:
        at = n * stride + channel * pixels + pixel
    return at


@triton.jit
def share(at, size):  # type: ignore[no-untyped-def]
    # Of a pixel, or of the first of two, in the mean along one axis: the last of an odd size is alone.
    return tl.where((at % 2 == 0) & (at + 1 == size), 1.0, 0.5)


def pooled_like(x: Tensor, pooling: str) -> Tensor:
    """An empty tensor for `x` pooled, in the memory format of `x`."""
    n, channels, height, width = x.shape
    if pooling == "halve":
        height, width = (height + 1) // 2, (width + 1) // 2
    return torch.empty(
        (n, channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=checks.memory_format(x),
    )


def strided(x: Tensor, channels_last: bool) -> tuple[Tensor, int]:
    """A tensor that kernels can read, and its stride as `place` takes it.

    A slice of channels, such as the gradient of one tensor of a concatenation, is read where it is; other
    tensors that are not dense are copied.
    """
    _, channels, height, width = x.shape
    dense = channels if channels_last else channels * height * width
    stride = x.stride(3 if channels_last else 0)
    if channels_last:
        wanted = (height * width * stride, 1, width * stride, stride)
    else:
        wanted = (stride, height * width, width, 1)
    places = zip(x.shape, x.stride(), wanted, strict=True)
    if stride >= dense and all(own == want for size, own, want in places if size > 1):
        return x, int(stride)
    order = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=order), int(dense)


def tile(channels: int, block: int, channels_last: bool) -> tuple[int, int]:
    """ROWS and COLUMNS of a program with `block` numbers, a power of two."""
    columns = min(COLUMNS, block, triton.next_power_of_2(channels)) if channels_last else 1
    return block // columns, columns


def unit(*strides: int) -> int:
    """A number of elements, a power of two, that divides all strides: how wide loads and stores may be."""
    return gcd(16, *strides)
