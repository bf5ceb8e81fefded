"""The L2 step: the kernel equals the reference to rounding, and images stay in the ellipsoid.

The file runs twice: on the operator, and in another process on the kernel, under Triton's interpreter.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

from hpcphotoz.kernels.attack import reference
from tests.helpers.kernels.interpreter import (
    INTERPRETED,
    compiled,
    interpret,
    interpreted,
    passed_under_the_interpreter,
    thinned,
)
from tests.helpers.kernels.step_problems import (
    CASES,
    FEW,
    FORMATS,
    SHAPES,
    UNIT,
    Problem,
    Shape,
    Step,
    close,
    free,
    interior,
    launched,
    per_pixel,
    problem,
)

triton = pytest.importorskip("triton", reason="triton is not installed: the kernels cannot run")
from hpcphotoz.kernels.attack import l2 as kernel

pytestmark = pytest.mark.usefixtures("poison")

interpret(kernel)
l2: Step = launched(kernel.launch) if INTERPRETED else kernel.l2


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernels_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "", slow=slow) >= (6 if slow else 36)


# Five numbers are rounded on the way to a pixel, by half a unit of `scale` at most each; two norms are
# of sums of up to 800 squares, in lanes and then in pairs: a few units more. A wrong sign is 10^5 units.
L2_UNITS = 8.0


@interpreted
@pytest.mark.parametrize(
    ("shape", "layout", "block"),
    thinned(list(product(SHAPES, FORMATS, [64, 4096])), lambda k: k % 4 in (0, 3) or k > 11),
)
def test_l2_kernel_equals_reference(shape: Shape, layout: torch.memory_format, block: int) -> None:
    for case in CASES if block > 64 else CASES[1:2] + CASES[-2:-1]:
        p = problem(shape, case, layout)
        close(launched(kernel.launch, block=block)(**p), reference.l2(**p), p, L2_UNITS)


def ellipsoid(p: Problem, out: Tensor) -> tuple[Tensor, Tensor]:
    """|delta / eps| of each object, in float64, and how far rounding may raise it above 1."""
    delta = torch.where(free(p), out.double() - p["x0"], 0)
    eps = per_pixel(p, "eps").double().clamp(min=1e-30)
    # x0 + delta is rounded; the norm by which it was divided is that of up to 800 rounded squares.
    rounding = UNIT * (p["x0"].abs() + delta.abs()) / eps
    rounding[:, per_pixel(p, "eps").expand_as(delta)[0, :, 0, 0] == 0] = 0
    return (delta / eps).flatten(1).norm(dim=1), rounding.flatten(1).norm(dim=1) + 32 * UNIT


@pytest.mark.parametrize("bound", [1.5, torch.inf])
@pytest.mark.parametrize("shape", SHAPES)
def test_l2_stays_in_the_ellipsoid_and_the_bounds(shape: Shape, bound: float) -> None:
    for case in FEW:
        p = problem(shape, case, bound=bound)
        p["eps"][..., -1:] = 0  # eps = 0 in one band
        p["x0"] = p["x0"].clamp(per_pixel(p, "lo"), per_pixel(p, "hi"))
        out, may = l2(**p), free(p)
        norm, slack = ellipsoid(p, out)
        assert (norm <= 1 + slack).all()
        assert torch.equal(out[:, -1][may[:, -1]], p["x0"][:, -1][may[:, -1]])
        assert ((out >= per_pixel(p, "lo")) & (out <= per_pixel(p, "hi")))[may].all()
        if bound == torch.inf and shape[1] > 1 and may.any():  # the images start outside
            assert norm.max() > 1 - slack.max()


@pytest.mark.parametrize("shape", SHAPES)
def test_l2_projection_is_idempotent_and_zero_gradient_a_fixed_point(shape: Shape) -> None:
    for case in FEW:
        p = problem(shape, case)
        p["x0"] = p["x0"].clamp(
            per_pixel(p, "lo"), per_pixel(p, "hi")
        )  # elsewhere, the bounds may limit the change
        once = l2(**p)
        again = p | {"adv": once, "grad": None}
        close(l2(**again), once, again, 2.0)  # the norm is 1 to rounding, so that a pixel moves by its own
        for grad in (None, torch.zeros_like(once), torch.full_like(once, torch.nan)):
            wide = again | {"eps": 1000 * p["eps"], "grad": grad}
            assert torch.equal(l2(**wide), once)


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", SHAPES)
def test_l2_takes_a_full_step_for_any_size_of_the_gradient(shape: Shape, size: float) -> None:
    p = interior(shape, eps=1e6)
    p["step"] = 0.1 + torch.rand(shape[1])
    grad = p["grad"]
    out = l2(**p | {"grad": size * grad})
    taken = (out.double() / per_pixel(p, "step")).flatten(1).norm(dim=1)
    torch.testing.assert_close(taken, torch.ones_like(taken), rtol=16 * UNIT, atol=0)
    # The steepest step of that length is d = step^2 grad / |step grad|. Below 1e-37 a
    # product loses bits; above, every factor is rounded, and the norm is a sum.
    best = per_pixel(p, "step").double() ** 2 * grad / (per_pixel(p, "step") * grad.double()).norm()
    if shape[0] == 1:
        torch.testing.assert_close(out.double(), best, rtol=1e-5 if size > 1e-37 else 0.1, atol=1e-7)


def test_l2_climbs_more_than_any_other_step_of_that_length() -> None:
    p = interior((1, 3, 7, 5), eps=1e6)
    p["step"] = torch.tensor([0.1, 1.0, 2.0])
    gain = (p["grad"] * l2(**p)).sum()
    g = torch.Generator().manual_seed(1)
    for _ in range(100):
        d = p["grad"] + torch.randn(p["grad"].shape, generator=g)
        d *= per_pixel(p, "step") ** 2
        assert (p["grad"] * d / (d / per_pixel(p, "step")).norm()).sum() < gain
