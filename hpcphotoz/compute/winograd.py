"""Convolutions with kernels of 3x3 and 5x5 by Winograd's minimal filtering, for forward passes on CPUs.

An output tile of m x m needs (m + r - 1)^2 products a channel pair in place of m^2 r^2 (Lavin & Gray 2016,
arXiv:1509.09308): a quarter of them for 3x3 and less than a sixth for 5x5, with m = 4. The tiles are
transformed, multiplied and transformed back as matrix products, in float32; oneDNN has no such form for x86.
Errors are about five times those of a direct convolution: 4e-5 of outputs of variance 1.
"""

import copy
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_TILE = 4  # m: pixels a side of an output tile
_POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))  # of the interpolation, and infinity
_LEAST_CHANNELS = 32  # of input and output: below, the transforms cost more than they save
_LEAST_SIDE = 16  # of the map
_FLOATS = 1 << 18  # of transformed tiles at a time: 1 MB, which stays in a core's cache


def with_winograd(network: nn.Module) -> nn.Module:
    """A copy of a network, which shares its weights, whose larger convolutions are computed so.

    It is for passes without gradients, and for weights that stay as they are.

    A convolution qualifies by its shape alone, so that every process computes the same: nn.Conv2d itself or
    a subclass that does not override `_conv_forward`, kernel 3x3 or 5x5, stride and dilation 1, one group, 32
    or more channels on both sides, and an output of 16 pixels or more a side.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    found = copy.deepcopy(network, cast(dict[int, object], shared))
    for module in found.modules():
        if isinstance(module, nn.Conv2d) and qualifies(module):
            kernel = transformed_kernel(module.weight.detach())
            module._conv_forward = partial(_convolve, module, kernel)  # type: ignore[method-assign]
    return found


def qualifies(module: nn.Conv2d) -> bool:
    """Whether a layer's kernel, and the way in which it is applied, are those of `with_winograd`."""
    return (
        type(module)._conv_forward is nn.Conv2d._conv_forward
        and "_conv_forward" not in vars(module)
        and module.kernel_size in ((3, 3), (5, 5))
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and min(module.in_channels, module.out_channels) >= _LEAST_CHANNELS
    )


def transformed_kernel(weight: Tensor) -> Tensor:
    """Kernels (K, C, r, r) at the points of the interpolation: (n^2, C, K), n = m + r - 1."""
    _, g, _ = _matrices(weight.shape[-1])
    u = torch.einsum("ik,ockl,jl->ijco", g, weight.double(), g)
    return u.flatten(0, 1).to(weight.dtype).contiguous()


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, size: int, padding: Sequence[int]) -> Tensor:
    """The convolution of x (N, C, H, W) with a `transformed_kernel` of `size` x `size`: (N, K, H', W').

    The result is channels_last. Raises ValueError for another kernel than x has channels.
    """
    n, channels, height, width = x.shape
    if kernel.shape[1] != channels:
        raise ValueError(f"a kernel of {kernel.shape[1]} channels for {channels}")
    rows, columns = height + 2 * padding[0] - size + 1, width + 2 * padding[1] - size + 1
    down, across = -(-rows // _TILE), -(-columns // _TILE)
    after = _TILE * down - rows, _TILE * across - columns  # further padding, of whole tiles
    padded = functional.pad(
        x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1] + after[1], padding[0], padding[0] + after[0])
    ).contiguous()
    outputs, at_once = kernel.shape[2], max(1, _FLOATS // (len(kernel) * down * across * channels))
    out = x.new_empty(n, _TILE * down, _TILE * across, outputs)
    for first in range(0, n, at_once):
        _convolve_tiles(padded[first : first + at_once], kernel, bias, size, out[first : first + at_once])
    return out[:, :rows, :columns].permute(0, 3, 1, 2)


def _convolve_tiles(padded: Tensor, kernel: Tensor, bias: Tensor | None, size: int, out: Tensor) -> None:
    b, _, a = _on(size, padded.dtype)
    side = _TILE + size - 1
    n, height, width, channels = out.shape[0], *out.shape[1:3], padded.shape[3]
    down, across = height // _TILE, width // _TILE
    tiles = padded.unfold(1, side, _TILE).unfold(2, side, _TILE)  # (N, down, across, C, side, side)
    columns = tiles.permute(4, 5, 0, 1, 2, 3).reshape(side * side, -1)
    at_points = (b @ columns).view(side * side, n * down * across, channels)
    products = torch.bmm(at_points, kernel).view(side * side, -1)
    found = (a @ products).view(_TILE, _TILE, n, down, across, -1).permute(2, 3, 0, 4, 1, 5)
    view = out.view(n, down, _TILE, across, _TILE, -1)
    if bias is None:
        view.copy_(found)
    else:
        torch.add(found, bias, out=view)


def _convolve(module: nn.Conv2d, kernel: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = cast(tuple[int, int], module.padding)
    sides = [
        side + 2 * pad - module.kernel_size[0] + 1 for side, pad in zip(x.shape[2:], padding, strict=True)
    ]
    if x.dtype != torch.float32 or min(sides) < _LEAST_SIDE or x.device.type != "cpu":
        out: Tensor = nn.Conv2d._conv_forward(module, x, weight, bias)
        return out
    return convolve(x, kernel, bias, module.kernel_size[0], padding)


@cache
def _on(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Both transforms of a square tile as one matrix each: (n^2, n^2), none, (m^2, n^2)."""
    b, g, a = _matrices(size)
    return torch.kron(b, b).to(dtype), g, torch.kron(a, a).to(dtype)


@cache
def _matrices(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """B^T (n, n), G (n, r) and A^T (m, n) in float64: y = A^T [(G g) * (B^T d)] is the filter g on d."""
    n = _TILE + size - 1
    points = [float(point) for point in _POINTS[: n - 1]]
    a, g, b = np.zeros((_TILE, n)), np.zeros((n, size)), np.zeros((n, n))
    for j, point in enumerate(points):
        others = [other for k, other in enumerate(points) if k != j]
        a[:, j] = point ** np.arange(_TILE)
        g[j] = point ** np.arange(size) / np.prod([point - other for other in others])
        b[j, : n - 1] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    # Rows of B and G may be scaled against each other: halves make the errors of both alike.
    scale = np.sqrt(np.abs(b).sum(axis=1) / np.abs(g).sum(axis=1))
    return tuple(torch.from_numpy(x) for x in (b / scale[:, None], g * scale[:, None], a))  # type: ignore[return-value]
