"""Gradients of bias, PReLU and pooling in one pass: reads x and a gradient, writes the gradient of x.

Definition: `reference.prelu_pool_gradients`; the gradient of x in float32 to the bit. Each program adds what
its pixels give to the gradients of bias and slope, and torch adds the programs: no atomic additions, the same
sums every time. The pass for the gradient of x alone has neither.
"""

import torch
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
    share,
    strided,
    tile,
    unit,
)
from hpcphotoz.kernels.network.reference import POOLINGS

_PROGRAMS, _ROUNDS = 1024, 16  # with parameters: tiles a program, so that this many programs are left


@triton.jit  # type: ignore[untyped-decorator]
def _pool_gradient(  # type: ignore[no-untyped-def]
    grad,
    n,
    pixel,
    channel,
    inside,
    height,
    width,
    stride,
    POOLING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    # With respect to the output of the PReLU, as `reference.pool_gradient`: along columns, then along rows.
    pixels = height * width
    row = pixel // width
    column = pixel % width
    if POOLING == NONE:
        at = place(n, pixel, channel, stride, pixels, CHANNELS_LAST)
        found = tl.load(grad + at, inside, 0.0).to(tl.float32)
    elif POOLING == HALVE:
        half = (width + 1) // 2
        pixels = (height + 1) // 2 * half
        at = place(n, row // 2 * half + column // 2, channel, stride, pixels, CHANNELS_LAST)
        found = tl.load(grad + at, inside, 0.0).to(tl.float32) * share(row, height) * share(column, width)
    else:
        own = place(n, pixel, channel, stride, pixels, CHANNELS_LAST)
        left = place(n, pixel - 1, channel, stride, pixels, CHANNELS_LAST)
        above = place(n, pixel - width, channel, stride, pixels, CHANNELS_LAST)
        both = place(n, pixel - width - 1, channel, stride, pixels, CHANNELS_LAST)
        of_own = tl.load(grad + own, inside, 0.0).to(tl.float32)
        of_left = tl.load(grad + left, inside & (column > 0), 0.0).to(tl.float32)
        of_above = tl.load(grad + above, inside & (row > 0), 0.0).to(tl.float32)
        of_both = tl.load(grad + both, inside & (row > 0) & (column > 0), 0.0).to(tl.float32)
        if POOLING == SMOOTH_EDGE:
            in_row = tl.where(column + 1 == width, 1.0, 0.5)
            in_column = tl.where(row + 1 == height, 1.0, 0.5)
        else:
            in_row = 0.5
            in_column = 0.5
        here = in_row * of_own + 0.5 * of_left
        before = in_row * of_above + 0.5 * of_both
        found = in_column * here + 0.5 * before
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _backward_kernel(  # type: ignore[no-untyped-def]
    of_x,
    sums,
    grad,
    x,
    bias,
    slope,
    objects,
    channels,
    height,
    width,
    x_units,
    grad_units,
    POOLING: tl.constexpr,
    PARAMETERS: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    groups = tl.cdiv(channels, COLUMNS)
    channel = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    block = tl.program_id(0) // groups
    known = channel < channels
    b = tl.load(bias + channel, known, 0.0).to(tl.float32)
    s = tl.load(slope + channel, known, 0.0).to(tl.float32)
    pixels = height * width
    of_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    of_slope = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(ROUNDS):
        p = (block * ROUNDS + k) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = known & (p < objects * pixels)
        n = (p // pixels).to(tl.int64)
        pixel = p % pixels
        g = _pool_gradient(
            grad, n, pixel, channel, inside, height, width, grad_units * UNIT, POOLING, CHANNELS_LAST
        )
        at = place(n, pixel, channel, x_units * UNIT, pixels, CHANNELS_LAST)
        y = tl.load(x + at, inside, 0.0).to(tl.float32) + b
        found = tl.where(y > 0, g, s * g)
        tl.store(of_x + at, found, inside)
        if PARAMETERS:
            of_bias += tl.where(inside, found, 0.0)
            of_slope += tl.where(inside, tl.where(y > 0, 0.0, g * y), 0.0)
    if PARAMETERS:
        own = sums + block * 2 * channels + channel
        tl.store(own, tl.sum(of_bias, 0)[None, :], known)
        tl.store(own + channels, tl.sum(of_slope, 0)[None, :], known)


def launch(
    grad: Tensor,
    x: Tensor,
    bias: Tensor,
    slope: Tensor,
    pooling: str,
    parameters: bool = True,
    block: int = BLOCK,
) -> tuple[Tensor, ...]:
    """Run the kernel itself, on any device; arguments and results as `reference.prelu_pool_gradients`.

    Without `parameters` the gradient of x is the only result.
    """
    n, channels, height, width = x.shape
    if x.numel() == 0:
        return (torch.empty_like(x), *(torch.zeros_like(t) for t in (bias, slope) if parameters))
    channels_last = checks.is_channels_last(x)
    (x, x_stride), (grad, grad_stride) = strided(x, channels_last), strided(grad, channels_last)
    of_x, step = torch.empty_like(x), unit(x_stride, grad_stride)
    rows, columns = tile(channels, block, channels_last)
    groups, blocks = triton.cdiv(channels, columns), triton.cdiv(n * height * width, rows)
    # A power of two: a count known to the compiler, and few kernels to compile.
    rounds = max(1, min(_ROUNDS, groups * blocks // _PROGRAMS)) if parameters else 1
    rounds = 1 << rounds.bit_length() - 1
    blocks = triton.cdiv(blocks, rounds)
    sums = torch.empty((blocks, 2, channels), dtype=torch.float32, device=x.device) if parameters else of_x
    with checks.on_device(x):
        wrap_triton(_backward_kernel)[(groups * blocks,)](
            of_x,
            sums,
            grad,
            x,
            bias,
            slope,
            n,
            channels,
            height,
            width,
            x_stride // step,
            grad_stride // step,
            POOLING=POOLINGS.index(pooling),
            PARAMETERS=parameters,
            UNIT=step,
            CHANNELS_LAST=channels_last,
            ROWS=rows,
            COLUMNS=columns,
            ROUNDS=rounds,
        )
    if not parameters:
        return (of_x,)
    of_bias, of_slope = sums.sum(0)
    return of_x, of_bias.to(bias.dtype), of_slope.to(slope.dtype)
