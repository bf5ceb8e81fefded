"""The L-infinity steps: the kernel equals the reference bit for bit, and images stay in the ball."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcphotoz.kernels.attack import reference
from hpcphotoz.kernels.checks import StepArguments
from tests.helpers.kernels.interpreter import (
    compiled,
    interpret,
    interpreted,
    passed_under_the_interpreter,
    thinned,
)
from tests.helpers.kernels.memory_checks import left_alone
from tests.helpers.kernels.pgd_problems import FLAGS, GRADS, SHAPES, problem, with_previous
from tests.helpers.kernels.step_problems import FORMATS, Shape, assert_identical

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels.attack import pgd as kernel

pytestmark = pytest.mark.usefixtures("poison")
interpret(kernel)


def launched(previous: Tensor | None = None, block: int = kernel.BLOCK, **p: Any) -> Tensor:
    return kernel.launch(StepArguments(**p), previous, block)


def launched_in_place(block: int = kernel.BLOCK, **p: Any) -> Tensor:
    return kernel.launch(StepArguments(**p), block=block, in_place=True)


@interpreted
@pytest.mark.parametrize(
    ("shape", "layout", "grad"), thinned(list(product(SHAPES, FORMATS, GRADS)), lambda k: k % 4 == k // 4 % 4)
)
def test_kernel_bit_for_bit(shape: Shape, grad: torch.dtype | None, layout: torch.memory_format) -> None:
    first = SHAPES.index(shape) + GRADS.index(grad) + FORMATS.index(layout)
    for flags in (FLAGS[first % 8], FLAGS[7 - first % 8]):  # every flag, on and off
        p = problem(shape, grad, layout, flags)
        assert_identical(launched(**p), reference.pgd(**p))


@interpreted
@pytest.mark.parametrize(
    ("layout", "flags"), thinned(list(product(FORMATS, FLAGS)), lambda k: k % 8 in (0, 5, 7))
)
def test_small_blocks_and_every_flag_bit_for_bit(layout: torch.memory_format, flags: Any) -> None:
    p = problem((3, 5, 9, 16), torch.bfloat16, layout, flags)
    for block in (16, 64):
        assert_identical(launched(**p, block=block), reference.pgd(**p))


@interpreted
@pytest.mark.parametrize(
    ("shape", "layout", "masked"),
    thinned(list(product(SHAPES, FORMATS, [False, True])), lambda k: k % 3 == 0),
)
def test_in_place_inactive_objects_are_left_alone_bit_for_bit(
    shape: Shape, layout: torch.memory_format, masked: bool
) -> None:
    """Neither read nor written, whatever they hold: a NaN of a kind that no kernel makes."""
    for active in (None, [False] * shape[0], [n % 2 == 1 for n in range(shape[0])]):
        p = problem(shape, torch.bfloat16, layout, (True, masked, False))
        p["active"] = None if active is None else torch.tensor(active, dtype=torch.bool)
        idle = [n for n, on in enumerate(active or ()) if not on]
        for name in ("adv", "x0"):
            p[name].view(torch.int32)[idle] = 0x7FABCDEF
        p["grad"][idle] = torch.nan
        wanted = reference.pgd(**p)
        assert_identical(launched(**p, block=512), wanted)
        images = [p[name] for name in ("adv", "x0", "grad", "mask") if p[name] is not None]
        with left_alone(*(tensor[n] for tensor in images for n in idle)):
            found = launched_in_place(**p, block=512)
        assert found is p["adv"] and torch.equal(found.view(torch.int32), wanted.view(torch.int32))


@interpreted
def test_out_of_place_inactive_objects_are_copied_and_the_check_sees_it_bit_for_bit() -> None:
    p = problem((2, 5, 8, 8), flags=(False, False, True))
    idle = int((~p["active"]).nonzero()[0, 0])
    with left_alone(p["adv"][idle]), pytest.raises(Exception, match="leave alone"):
        launched(**p)


@interpreted
@pytest.mark.parametrize(
    ("shape", "layout", "grad"),
    thinned(list(product(SHAPES, FORMATS, GRADS[:3])), lambda k: k % 3 == k // 3 % 3),
)
def test_momentum_kernel_bit_for_bit(
    shape: Shape, grad: torch.dtype | None, layout: torch.memory_format
) -> None:
    first = SHAPES.index(shape) + GRADS.index(grad)
    for flags in (FLAGS[first % 8], FLAGS[7 - first % 8]):
        p = with_previous(problem(shape, grad, layout, flags))
        assert_identical(launched(**p), reference.momentum(**p))


@interpreted
@pytest.mark.parametrize("shape", thinned([(s,) for s in SHAPES[:4]], lambda k: k in (0, 2)))
def test_nan_images_bit_for_bit(shape: Shape) -> None:
    p = with_previous(problem(shape))
    for name in ("x0", "adv", "previous", "eps", "step", "lo", "hi"):
        q = p | {name: p[name].clone()}
        q[name].view(-1)[::3] = torch.nan
        assert_identical(launched(**q), reference.momentum(**q))
        q.pop("previous")
        assert_identical(launched(**q), reference.pgd(**q))


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernel_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "bit_for_bit", slow=slow) >= 40


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flags", FLAGS)
def test_the_step_stays_in_the_ball_and_the_bounds(shape: Shape, flags: tuple[bool, ...]) -> None:
    p = problem(shape, flags=flags)
    p["adv"] = p["x0"]  # pixels that may not change lie in the ball here
    out, radius = kernel.pgd(**p), p["eps"][..., None, None]
    lo, hi = p["lo"][..., None, None], p["hi"][..., None, None]
    # x0 +- eps is rounded once, and so is the difference taken here: half an ulp (2^-24) of |x0| + eps each.
    within = (out - p["x0"]).abs() <= radius + 2.0**-23 * (p["x0"].abs() + radius)
    clipped = (p["x0"] < lo) | (p["x0"] > hi)  # the bounds win where x0 lies outside them
    assert (within | clipped).all()
    kept = torch.zeros_like(out, dtype=torch.bool)
    if p["mask"] is not None:
        kept |= ~p["mask"]
    if p["active"] is not None:
        kept |= ~p["active"][:, None, None, None]
    assert ((out >= lo) & (out <= hi) | kept).all()
    assert torch.equal(out[kept], p["adv"][kept])


def test_the_step_climbs_by_exactly_its_length_inside_the_ball() -> None:
    x0, one = torch.zeros(1, 2, 2, 2), torch.ones(1, 2)
    grad = torch.tensor([3.0, -2.0, 0.0, torch.nan, 1e-30, -torch.inf, torch.inf, -0.0]).reshape(1, 2, 2, 2)
    free = torch.full((2,), torch.inf)
    moved = kernel.pgd(x0, x0, grad, one, 0.25 * one, -free, free)
    assert moved.flatten().tolist() == [0.25, -0.25, 0, 0, 0.25, -0.25, 0.25, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_projection_is_idempotent_and_zero_gradient_a_fixed_point(shape: Shape) -> None:
    p = problem(shape)
    once = kernel.pgd(**p)
    assert torch.equal(kernel.pgd(**{**p, "adv": once, "grad": None}), once)
    assert torch.equal(kernel.pgd(**{**p, "adv": once, "grad": torch.zeros_like(once)}), once)


def test_momentum_without_a_past_is_three_quarters_of_a_step() -> None:
    x0, one, free = torch.zeros(1, 2, 2, 2), torch.ones(2), torch.full((2,), torch.inf)
    grad = torch.ones_like(x0)
    still = kernel.momentum(x0, x0, x0, grad, one, 0.4 * one, -free, free)
    torch.testing.assert_close(still, torch.full_like(x0, 0.3))
    moving = kernel.momentum(x0, x0 - 0.2, x0, grad, one, 0.4 * one, -free, free)
    torch.testing.assert_close(moving, torch.full_like(x0, 0.35))
    # The step is projected before it is mixed, and the mixture again.
    far = kernel.momentum(x0 + 0.9, x0 + 0.1, x0, grad, one, 0.4 * one, -free, free)
    torch.testing.assert_close(far, torch.full_like(x0, 1.0))
