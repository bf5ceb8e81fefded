"""Inputs of the L-infinity steps."""

from itertools import product

import torch

from tests.helpers.kernels.step_problems import Problem, Shape

SHAPES: list[Shape] = [
    # n, bands, height, width. Planes below 1024 pixels share a program, those above have their own; a program
    # has 2048 pixels (channels_last: of an object, otherwise of a plane).
    (2, 5, 3, 3),  # far smaller than a program
    (1, 1, 32, 32),  # one band: contiguous and channels_last at once
    (2, 2, 32, 32),  # channels_last: exactly one program
    (3, 3, 33, 33),  # an odd plane of its own, not quite a program
    (1, 5, 64, 64),  # exactly two programs a plane, ten an object
    (2, 6, 16, 17),  # shared programs, more than one an object
    (1, 5, 47, 45),  # two programs a plane, the second nearly empty
    (0, 5, 8, 8),
]


GRADS = [torch.float32, torch.bfloat16, torch.float16, None]


FLAGS = list(product([False, True], repeat=3))  # per object, masked, flagged


def problem(
    shape: Shape,
    grad: torch.dtype | None = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    flags: tuple[bool, ...] = (False, False, False),
    device: str = "cpu",
) -> Problem:
    """Images in and out of the bounds, gradients with 0, NaN and inf; the last band is free of bounds."""
    per_object, masked, flagged = flags
    g = torch.Generator().manual_seed(0)
    n, bands = shape[:2]
    x0 = torch.randn(shape, generator=g)
    eps = 0.1 + torch.rand((n, bands) if per_object else (bands,), generator=g)
    hi = 1 + torch.rand((n, bands) if per_object else (bands,), generator=g)
    hi[..., -1:] = torch.inf
    adv = x0 + 1.1 * eps[..., None, None] * (2 * torch.rand(shape, generator=g) - 1)
    direction = torch.randn(shape, generator=g)
    for value in (0.0, torch.nan, torch.inf, -torch.inf):
        direction[torch.rand(shape, generator=g) < 0.1] = value
    images = {"adv": adv, "x0": x0, "grad": None if grad is None else direction.to(grad)}
    images["mask"] = torch.rand(shape, generator=g) < 0.7 if masked else None
    found: Problem = {
        name: None if t is None else t.contiguous(memory_format=layout) for name, t in images.items()
    }
    found |= {"eps": eps, "step": 0.3 * eps, "lo": -hi + 0.1, "hi": hi}
    found["active"] = (torch.arange(n) + n) % 2 == 0 if flagged else None  # one object: inactive
    return {name: t if t is None else t.to(device) for name, t in found.items()}


def with_previous(p: Problem) -> Problem:
    """The arguments of `momentum`: the images before `adv` lie anywhere in twice the ball."""
    g = torch.Generator().manual_seed(1)
    noise = 4 * torch.rand(p["x0"].shape, generator=g) - 2
    return p | {"previous": p["x0"] + p["eps"][..., None, None] * noise.to(p["x0"])}


def with_normalised(p: Problem, dtype: torch.dtype, channels: int, kind: str = "asinh") -> Problem:
    """The arguments of `pgd_normalised`: the gradient is that of images with further channels, of NaN."""
    n, bands, height, width = p["x0"].shape
    scale = 0.05 + torch.rand(bands, generator=torch.Generator().manual_seed(2)).to(p["eps"])
    grad = p["grad"]
    if grad is not None:
        grad = torch.full((n, channels, height, width), torch.nan).to(grad.device, dtype)
        grad[:, :bands] = p["grad"]
        grad = grad.contiguous(memory_format=torch.channels_last)
    seen = torch.empty(
        (n, channels, height, width), dtype=dtype, device=p["x0"].device, memory_format=torch.channels_last
    )
    found = {name: value for name, value in p.items() if name != "active"}
    return found | {"seen": seen, "grad": grad, "scale": scale, "kind": kind}
