"""The flux-conserving step: the kernel equals the reference to rounding, and flux is conserved in the ball.

The file runs twice: on the operator, and in another process on the kernel, under Triton's interpreter.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

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
    scale,
)

triton = pytest.importorskip("triton", reason="triton is not installed: the kernels cannot run")
from hpcphotoz.kernels.attack import flux as kernel

pytestmark = pytest.mark.usefixtures("poison")

interpret(kernel)
flux: Step = launched(kernel.launch) if INTERPRETED else kernel.flux


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernels_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "", slow=slow) >= (30 if slow else 45)


# The shift is the root of a sum of up to 132 rounded numbers: a few units of that sum, shared among
# the pixels that are not at the edge of their box, of which these planes have several.
FLUX_UNITS = 16.0


@interpreted
@pytest.mark.parametrize(("case", "shape"), thinned(list(product(CASES, SHAPES)), lambda k: k % 3 == 0))
def test_flux_kernel_equals_reference_in_one_block(shape: Shape, case: Any) -> None:
    p = problem(shape, case, FORMATS[CASES.index(case) % 2])
    close(launched(kernel.launch)(**p), reference.flux(**p), p, FLUX_UNITS)


@interpreted
@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[4]])
@pytest.mark.parametrize("shape", [(1, 2, 7, 11), (1, 1, 4, 33)])
def test_flux_kernel_equals_reference_in_several_blocks(shape: Shape, case: Any) -> None:
    p = problem(shape, case, FORMATS[CASES.index(case) % 2])
    later = torch.arange(shape[2] * shape[3]).reshape(shape[2:]) >= 64
    p["adv"] = torch.where(later, p["adv"] + 0.5, p["x0"])  # the first block does not determine the shift
    close(launched(kernel.launch, block=64, one_block=64)(**p), reference.flux(**p), p, FLUX_UNITS)


def summed(p: Problem, out: Tensor) -> tuple[Tensor, Tensor]:
    """|sum of delta| of each object and band, in float64, and its bound by rounding."""
    # A pixel adds the rounding of x0 + delta and of delta - tau, half a unit of `scale` each; the sum that
    # the shift makes zero is itself rounded, by less than half a unit a pixel.
    delta = torch.where(free(p), out.double() - p["x0"], 0)
    return delta.sum((2, 3)).abs(), torch.where(free(p), 1.5 * UNIT * scale(p), 0).sum((2, 3))


@pytest.mark.parametrize("bound", [0.5, torch.inf])
@pytest.mark.parametrize("shape", SHAPES)
def test_flux_is_conserved_in_the_ball_and_the_bounds(shape: Shape, bound: float) -> None:
    for case in FEW:
        p = problem(shape, case, bound=bound)
        out, may = flux(**p), free(p)
        total, slack = summed(p, out)
        assert (total <= slack).all()
        x0, eps, lo, hi = (p["x0"], *(per_pixel(p, name) for name in ("eps", "lo", "hi")))
        ulp = UNIT * scale(p)
        assert ((out - x0).abs() <= eps + ulp)[may].all()
        # A pixel outside the bounds moves no further out.
        assert ((out <= torch.maximum(hi, x0)) & (out >= torch.minimum(lo, x0)))[may].all()


@pytest.mark.parametrize("shape", SHAPES)
def test_flux_projection_is_idempotent_and_zero_gradient_a_fixed_point(shape: Shape) -> None:
    for case in FEW:
        p = problem(shape, case)
        once = flux(**p)
        again = p | {"adv": once}
        for grad in (None, torch.full_like(once, torch.nan), torch.ones_like(once)):
            close(
                flux(**again | {"grad": grad}), once, again, 4.0
            )  # x0 + delta, adv - x0, minus a shift of 0


@pytest.mark.parametrize("shape", SHAPES)
def test_flux_projection_is_the_nearest_point(shape: Shape) -> None:
    # The conditions of Karush, Kuhn and Tucker: one shift tau per plane, such that y - delta is tau inside
    # the box, at least tau at its upper and at most tau at its lower edge.
    for case in CASES[-2:]:
        p = problem(shape, case)
        x0, eps, lo, hi = (p["x0"], *(per_pixel(p, name) for name in ("eps", "lo", "hi")))
        delta = (flux(**p) - x0).double()
        shift = (p["adv"] - x0).double() - delta
        unit = 2 * UNIT * scale(p)
        low = torch.maximum(-eps, lo - x0).clamp(max=0)
        high = torch.minimum(eps, hi - x0).clamp(min=0)
        at_high, at_low = delta >= high - unit, delta <= low + unit
        least = torch.where(free(p) & ~at_low, shift, torch.inf).amin((2, 3))
        greatest = torch.where(free(p) & ~at_high, shift, -torch.inf).amax((2, 3))
        assert (greatest <= least + unit.amax((2, 3))).all()


def test_no_other_point_of_the_flux_ball_is_nearer() -> None:
    p = problem((1, 1, 5, 5), CASES[-2], bound=0.5)
    x0, eps, lo, hi = (p["x0"], *(per_pixel(p, name) for name in ("eps", "lo", "hi")))
    y = (p["adv"] - x0).double()
    delta = (flux(**p) - x0).double()
    low = torch.maximum(-eps, lo - x0).clamp(max=0).double()
    high = torch.minimum(eps, hi - x0).clamp(min=0).double()
    g = torch.Generator().manual_seed(1)
    for size in (1.0, 0.1, 0.01) * 30:
        # Along a random direction that sums to zero among the pixels that can move, as far as the box allows.
        d = size * torch.randn(y.shape, generator=g, dtype=torch.float64)
        other = (delta + d).clamp(low, high)
        for _ in range(200):
            other = (other - other.mean()).clamp(low, high)
        assert other.sum().abs() < 1e-6
        assert (other - y).norm() > (delta - y).norm() - 1e-6


CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all up": lambda u, k: 3 * u.abs(),
    "two values": lambda u, k: torch.where(u > 0.4, 5.0, -3.0),
    "one far out": lambda u, k: torch.where(torch.arange(k) == 3, 1e3, u),
    "geometric": lambda u, k: 10 * 2.0 ** -(torch.arange(k) % 40).float(),
    "heavy tails": lambda u, k: torch.tan(1.57 * u),
    "at the edge": lambda u, k: u.sign(),
    "equal": lambda u, k: torch.full((k,), 0.7),
}


@pytest.mark.parametrize(
    ("name", "bound"), thinned(list(product(CHANGES, [0.0, 0.2, torch.inf])), lambda k: k % 3 == k // 3 % 3)
)
def test_flux_is_conserved_whatever_the_changes(name: str, bound: float) -> None:
    """The sum of the shifted changes is piecewise linear: with flat and steep pieces, few or many of them."""
    for shape in ((1, 2, 7, 11), (1, 1, 1, 2), (1, 2, 16, 16)):
        p = interior(shape, eps=1.0, step=0.25)
        g = torch.Generator().manual_seed(2)
        u = 2 * torch.rand(shape, generator=g) - 1
        pixels = shape[2] * shape[3]
        p["x0"] = torch.randn(shape, generator=g)
        p["adv"] = p["x0"] + CHANGES[name](u.flatten(2), pixels).expand(1, shape[1], pixels).reshape(shape)
        p["lo"], p["hi"] = torch.full((shape[1],), -bound), torch.full((shape[1],), bound)
        for q in (p, p | {"grad": None}, p | {"mask": u.abs() < 0.5}):
            out = flux(**q)
            total, slack = summed(q, out)
            assert (total <= slack).all()
            assert ((out - p["x0"]).abs() <= 1 + UNIT * scale(q))[free(q)].all()


def test_a_nan_image_spoils_its_own_band_alone() -> None:
    p = interior((1, 3, 7, 11))
    p["adv"] = p["adv"].clone()
    p["adv"][0, 1, 2, 3] = torch.nan
    out, clean = flux(**p), flux(**interior((1, 3, 7, 11)))
    assert torch.equal(out[:, ::2], clean[:, ::2])


@pytest.mark.parametrize("shape", SHAPES)
def test_flux_step_climbs_more_than_any_other_that_conserves_flux(shape: Shape) -> None:
    p = interior(shape, eps=1e3, step=0.5)
    pixels = shape[2] * shape[3]
    out, grad = flux(**p).flatten(2), p["grad"].flatten(2)
    gain = (out * grad).sum(2)
    ordered = grad.sort(dim=2).values
    half = pixels // 2
    best = 0.5 * (ordered[..., pixels - half :].sum(2) - ordered[..., :half].sum(2))
    # With an even number of pixels the median one stays and the others make up for it, by 1 / pixels each.
    lost = 0.5 * (grad.mean(2) - ordered[..., (pixels - 1) // 2]) if pixels % 2 == 0 else torch.zeros(())
    torch.testing.assert_close(gain, best - lost, rtol=1e-5, atol=0)
    g = torch.Generator().manual_seed(1)
    signs = torch.cat([torch.ones(half), -torch.ones(half), torch.zeros(pixels % 2)])
    for _ in range(50):
        other = 0.5 * signs[torch.randperm(pixels, generator=g)]
        assert ((other * grad).sum(2) <= gain * (1 + 1e-6)).all()


@pytest.mark.parametrize("power", [-100, 100])
def test_flux_step_does_not_depend_on_the_size_of_the_gradient(power: int) -> None:
    p = interior((1, 2, 7, 11))
    assert torch.equal(flux(**p | {"grad": p["grad"] * 2.0**power}), flux(**p))


def gradients(pixels: int) -> Iterator[Tensor]:
    """Gradients with a difficult median: ties, both zeros, smallest and largest numbers, one sign only."""
    g = torch.Generator().manual_seed(0)
    plain = torch.randn(pixels, generator=g)
    yield from (plain, plain.abs() + 1, -plain.abs() - 1, plain.round(), torch.full((pixels,), -3.0))
    for values in (
        [0.0, -0.0],
        [1e-45, -1e-45, 0.0],
        [torch.inf, -torch.inf],
        [torch.nan, 1.0],
        [3e38, -3e38],
    ):
        yield torch.tensor(values)[torch.randint(len(values), (pixels,), generator=g)]
    yield torch.nextafter(torch.ones(pixels), plain)  # the floats next to 1


@pytest.mark.parametrize(
    ("pixels", "dtype"),
    [(n, torch.float32) for n in (1, 2, 77)]
    + [(n, t) for n in (34,) for t in (torch.bfloat16, torch.float16)],
)
def test_the_median_is_exact(pixels: int, dtype: torch.dtype) -> None:
    grad = torch.stack([grad.to(dtype) for grad in gradients(pixels)])
    grad = grad.reshape(1, -1, pixels, 1)
    mask = torch.rand(grad.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0, 0] = False
    for chosen in (None, mask) if pixels > 2 else (None,):
        p = interior((1, grad.shape[1], pixels, 1), eps=1e3) | {"grad": grad, "mask": chosen}
        out = flux(**p)
        for band in range(grad.shape[1]):
            may = torch.ones(pixels, dtype=torch.bool) if chosen is None else chosen[0, band, :, 0]
            g = grad[0, band, :, 0].float().nan_to_num()[may]
            sign = (g - g.median()).sign() if len(g) else g
            found = out[0, band, :, 0]
            # The mean is subtracted, so that the sum is zero. Any other median moves a pixel by 1.
            torch.testing.assert_close(found[may], sign - sign.mean() if len(g) else g, rtol=0, atol=1e-6)
            assert (found[~may] == 0).all()


@pytest.mark.parametrize("side", [1, -1])
def test_no_pixel_at_a_bound_is_rounded_out_of_it(side: int) -> None:
    p = interior((1, 2, 16, 16), eps=10.0)
    bound = torch.tensor(-0.7)
    x0 = 3 * torch.rand(p["x0"].shape, generator=torch.Generator().manual_seed(3))
    assert (x0 + (bound - x0) < bound).sum() > 10, "here the sum of the limit and the pixel is an ulp outside"
    even = torch.arange(256).reshape(16, 16) % 2 == 0  # these go to the bound, the others make up for them
    p |= {"x0": side * x0, "adv": side * (x0 + torch.where(even, -9.0, 9.0)), "grad": None}
    p["lo" if side > 0 else "hi"] = side * bound.expand(2).contiguous()
    out = side * flux(**p)
    assert (out >= bound).all() and (out[..., even] < bound + 1e-6).all()
