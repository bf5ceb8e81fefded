"""Inputs for a step in a ball of several bands, and tolerances between kernel and reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hpcphotoz.kernels.checks import StepArguments
from tests.helpers.kernels.interpreter import INTERPRETED

Shape = tuple[int, int, int, int]
Problem = dict[str, Any]
Step = Callable[..., Tensor]
SHAPES: list[Shape] = [
    # n, bands, height, width
    (1, 5, 3, 3),  # smaller than any block, odd planes
    (1, 1, 8, 8),  # one band; exactly a block of 64
    (2, 3, 7, 11),  # more than a block of 64, not a multiple
    (1, 6, 4, 33),  # three blocks of 64 a plane, the last nearly empty
]
FORMATS = [torch.contiguous_format, torch.channels_last]
# Dtype of the gradient; whether parameters are per object, and there are a mask and flags.
CASES: list[tuple[torch.dtype | None, bool, bool, bool]] = [
    (torch.float32, False, False, False),
    (torch.bfloat16, True, True, True),
    (torch.float16, False, True, False),
    (torch.float32, True, False, True),
    (None, True, False, False),
    (None, False, True, True),
]
FEW = CASES[1:2] if INTERPRETED else CASES  # a plane takes the interpreter 30 ms
UNIT = 2.0**-24  # the relative error of one rounding


def launched(launch: Callable[..., Tensor], **options: Any) -> Step:
    """The kernel of a `launch`, as a function of the arguments of the reference."""
    return lambda **p: launch(StepArguments(**p), **options)


def problem(
    shape: Shape,
    case: tuple[torch.dtype | None, bool, bool, bool] = CASES[0],
    layout: torch.memory_format = torch.contiguous_format,
    bound: float = 1.5,
    device: str = "cpu",
) -> Problem:
    """Images in and out of the ball and of the bounds, a gradient with 0, NaN and infinities."""
    dtype, per_object, masked, flagged = case
    g = torch.Generator().manual_seed(0)
    n, bands = shape[:2]
    some, others = ((n, bands), (bands,)) if per_object else ((bands,), (n, bands))
    x0 = torch.randn(shape, generator=g)
    eps = 0.1 + torch.rand(some, generator=g)
    grad = torch.randn(shape, generator=g)
    for value in (0.0, torch.nan, torch.inf, -torch.inf):
        grad[torch.rand(shape, generator=g) < 0.05] = value
    images = {
        "adv": x0 + 1.5 * eps[..., None, None] * (2 * torch.rand(shape, generator=g) - 1),
        "x0": x0,
        "grad": None if dtype is None else grad.to(dtype),
        "mask": torch.rand(shape, generator=g) < 0.7 if masked else None,
    }
    found: Problem = {k: t if t is None else t.contiguous(memory_format=layout) for k, t in images.items()}
    found |= {"eps": eps, "step": 0.05 + 0.3 * torch.rand(others, generator=g)}
    found |= {"lo": -bound - torch.rand(others, generator=g), "hi": bound + torch.rand(some, generator=g)}
    found["active"] = (torch.arange(n) + n) % 2 == 1 if flagged else None  # of one object: active
    return {k: t if t is None else t.to(device) for k, t in found.items()}


def interior(shape: Shape, *, eps: float = 1.0, step: float = 1.0, seed: int = 0) -> Problem:
    """A zero image, no bounds, and a gradient without ties."""
    x0, band = torch.zeros(shape), torch.ones(shape[1])
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    far = torch.full((shape[1],), torch.inf)
    return {"adv": x0, "x0": x0, "grad": grad, "eps": eps * band, "step": step * band, "lo": -far, "hi": far}


def per_pixel(p: Problem, name: str) -> Tensor:
    values: Tensor = p[name]
    return values[..., None, None]


def free(p: Problem) -> Tensor:
    """Mask of the pixels that may change."""
    found: Tensor = torch.ones_like(p["x0"], dtype=torch.bool)
    for may in (p.get("mask"), p.get("active")):
        if may is not None:
            found &= may if may.ndim == 4 else may[:, None, None, None]
    return found


def scale(p: Problem) -> Tensor:
    """An upper bound of all numbers that are rounded on the way to a pixel."""
    x0: Tensor = p["x0"]
    adv: Tensor = p["adv"]
    return x0.abs() + (adv - x0).abs() + per_pixel(p, "eps") + per_pixel(p, "step")


def assert_identical(found: Tensor, wanted: Tensor) -> None:
    """Asserts equal dtype, layout and values; NaN equals NaN."""
    assert found.stride() == wanted.stride() or found.numel() == 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def close(found: Tensor, wanted: Tensor, p: Problem, units: float) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if found.numel() == 0:  # torch gives an empty channels_last tensor other strides on a GPU than on a CPU
        return
    assert found.stride() == wanted.stride()
    error = (found - wanted).abs() / (UNIT * scale(p))
    assert (error <= units).all(), f"off by {float(error.max())} units in the last place"
    assert torch.equal(found[~free(p)], p["adv"][~free(p)])
