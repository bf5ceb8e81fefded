"""Outputs of convolutions and gradients for bias, PReLU and pooling, and an oracle in float64 by autograd."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hpcphotoz.kernels.network.reference import POOLINGS
from tests.helpers.kernels.redshift_problems import last_place

Shape = tuple[int, int, int, int]
SHAPES: list[Shape] = [
    # n, channels, height, width; a program has 64 numbers or 1024, and at most 32 channels
    (2, 3, 4, 4),  # even sides
    (3, 7, 5, 6),  # an odd height
    (1, 5, 3, 3),  # odd sides, smaller than a program
    (2, 40, 2, 3),  # an odd width; two groups of channels, the second not full
    (2, 1, 7, 7),  # one channel: contiguous and channels_last at once
    (1, 4, 1, 1),  # one pixel
    (0, 3, 4, 4),  # no objects
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16]
UNIT = 2.0**-24  # the relative error of one rounding


class Problem(NamedTuple):
    """Arguments of `prelu_pool_gradients`; all but the first are those of `prelu_pool`."""

    grad: Tensor
    x: Tensor
    bias: Tensor
    slope: Tensor
    pooling: str

    @property
    def forward(self) -> tuple[Tensor, Tensor, Tensor, str]:
        return self.x, self.bias, self.slope, self.pooling


class Results(NamedTuple):
    """What `prelu_pool` and its gradients return, or largest errors of these."""

    out: Tensor
    of_x: Tensor
    of_bias: Tensor
    of_slope: Tensor


def problem(
    shape: Shape,
    pooling: str,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    parameters: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Problem:
    """Numbers of both signs, some with x + bias = 0; slopes of both signs, one above 1."""
    assert pooling in POOLINGS
    g = torch.Generator().manual_seed(sum(shape))
    n, channels, height, width = shape
    # Eighths are exact in bfloat16 too.
    bias = (torch.arange(channels) % 7 - 3) / 8
    slope = torch.tensor([0.25, -0.5, 1.25, 0.0, 0.75])[torch.arange(channels) % 5]
    x = torch.randn(shape, generator=g)
    x = torch.where(torch.rand(shape, generator=g) < 0.2, -bias[:, None, None], x)
    if pooling == "halve":
        height, width = (height + 1) // 2, (width + 1) // 2
    grad = torch.randn((n, channels, height, width), generator=g)
    x, grad = (t.to(device, dtype).contiguous(memory_format=layout) for t in (x, grad))
    bias, slope = (t.to(device, parameters) for t in (bias, slope))
    return Problem(grad, x, bias, slope, pooling)


def oracle(p: Problem) -> Results:
    """The results in float64, on the CPU: torch's PReLU, a mean over each slice, gradients by autograd."""
    grad, *given = (t.detach().cpu().double() for t in p[:4])
    x, bias, slope = (t.requires_grad_() for t in given)
    y = functional.prelu(x + bias[:, None, None], slope)
    out = _pooled(y, p.pooling)
    return Results(out.detach(), *torch.autograd.grad(out, (x, bias, slope), grad))


def _pooled(y: Tensor, pooling: str) -> Tensor:
    if pooling == "none":
        return y
    step = 2 if pooling == "halve" else 1
    rows = []
    for i in range(0, y.shape[2], step):
        parts = [y[:, :, i : i + 2, j : j + 2] for j in range(0, y.shape[3], step)]  # shorter at the edge
        means = [t.sum((2, 3)) / 4 if pooling == "smooth" else t.mean((2, 3)) for t in parts]
        rows.append(torch.stack(means, 2))
    return torch.stack(rows, 2)


def tolerances(p: Problem) -> Results:
    """Largest errors, beside the last place of the type.

    A sum y is right to half a unit of itself, and a product, three additions and at most two exact halvings
    follow: 8 roundings of numbers whose absolute values the oracle adds up here. In the sums over pixels one
    term is added to at most 16 times in a program, and pairwise beyond: 32 more.
    """
    size = Problem(p.grad.abs(), p.x, p.bias, p.slope.abs(), p.pooling)
    found = oracle(size)
    y = p.x.cpu().double() + p.bias.cpu().double()[:, None, None]
    whole = _pooled(torch.maximum(y, -p.slope.cpu().double().abs()[:, None, None] * y), p.pooling)
    of_bias = found.of_x.sum((0, 2, 3))
    return Results(
        8 * UNIT * whole, 8 * UNIT * found.of_x, 40 * UNIT * of_bias, 40 * UNIT * found.of_slope.abs()
    )


def assert_right(found: Results, p: Problem) -> None:
    """Asserts the types of results, and that they are within `tolerances` of the oracle's."""
    types = (p.x.dtype, p.x.dtype, p.bias.dtype, p.slope.dtype)
    everything = zip(Results._fields, found, oracle(p), tolerances(p), types, strict=True)
    for name, ours, wanted, largest, dtype in everything:
        assert ours.shape == wanted.shape and ours.dtype == dtype, name
        error = (ours.detach().cpu().double() - wanted).abs()
        assert (error <= largest + last_place(wanted, dtype)).all(), f"{name}: off by {error.max()}"
