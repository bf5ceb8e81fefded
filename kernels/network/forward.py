"""Bias, PReLU and pooling in one pass: reads the output of a convolution, writes the input of the next.

Definition: `reference.prelu_pool`, in float32 to the bit. A pooled pixel reads up to four pixels, each of
which up to four pixels share: the caches serve all but the first.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.network.places import (
    BLOCK,
    HALVE,
    NONE,
    SMOOTH_EDGE,
    place,
    pooled_like,
    share,
    strided,
    tile,
    unit,
)
from hpcphotoz.kernels.network.reference import POOLINGS


@triton.jit
def _activated(x, at, inside, bias, slope):  # type: ignore[no-untyped-def]
    y = tl.load(x + at, inside, 0.0).to(tl.float32) + bias
    return tl.where(inside, tl.where(y > 0, y, slope * y), 0.0)  # outside, y would be the bias


@triton.jit  # type: ignore[untyped-decorator]
def _forward_kernel(  # type: ignore[no-untyped-def]
    out,
    x,
    bias,
    slope,
    objects,
    channels,
    height,
    width,
    out_units,
    x_units,
    POOLING: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    groups = tl.cdiv(channels, COLUMNS)
    channel = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    known = channel < channels
    b = tl.load(bias + channel, known, 0.0).to(tl.float32)
    s = tl.load(slope + channel, known, 0.0).to(tl.float32)

    p = tl.program_id(0) // groups * ROWS + tl.arange(0, ROWS)[:, None]
    if POOLING == HALVE:
        out_width = (width + 1) // 2
        pixels = (height + 1) // 2 * out_width
    else:
        out_width = width
        pixels = height * width
    inside = known & (p < objects * pixels)
    n = (p // pixels).to(tl.int64)
    pixel = p % pixels
    if POOLING == NONE:
        found = _activated(x, place(n, pixel, channel, x_units * UNIT, pixels, CHANNELS_LAST), inside, b, s)
    else:
        top = pixel // out_width
        left = pixel % out_width
        if POOLING == HALVE:
            top *= 2
            left *= 2
        found = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in tl.static_range(4):
            row = top + k // 2
            column = left + k % 2
            if POOLING == SMOOTH_EDGE:
                row = tl.minimum(row, height - 1)
                column = tl.minimum(column, width - 1)
            there = inside & (row < height) & (column < width)
            at = place(n, row * width + column, channel, x_units * UNIT, height * width, CHANNELS_LAST)
            found += _activated(x, at, there, b, s)
        if POOLING == HALVE:
            found *= share(top, height) * share(left, width)
        else:
            found *= 0.25
    tl.store(out + place(n, pixel, channel, out_units * UNIT, pixels, CHANNELS_LAST), found, inside)


def launch(x: Tensor, bias: Tensor, slope: Tensor, pooling: str, block: int = BLOCK) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `reference.prelu_pool`."""
    n, channels, height, width = x.shape
    out, channels_last = pooled_like(x, pooling), checks.is_channels_last(x)
    if out.numel() == 0:
        return out
    (x, x_stride), (_, out_stride) = strided(x, channels_last), strided(out, channels_last)
    step = unit(x_stride, out_stride)
    rows, columns = tile(channels, block, channels_last)
    programs = triton.cdiv(channels, columns) * triton.cdiv(n * out.shape[2] * out.shape[3], rows)
    with checks.on_device(x):
        wrap_triton(_forward_kernel)[(programs,)](
            out,
            x,
            bias,
            slope,
            n,
            channels,
            height,
            width,
            out_stride // step,
            x_stride // step,
            POOLING=POOLINGS.index(pooling),
            UNIT=step,
            CHANNELS_LAST=channels_last,
            ROWS=rows,
            COLUMNS=columns,
        )
    return out
