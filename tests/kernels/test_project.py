"""The L2 and the flux-conserving step: the kernels equal the reference to rounding, and what both promise.

The file runs twice: on the operators, and in a process of its own on the kernels, under Triton's interpreter.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels import reference
from tests.helpers.kernels.interpreter import (
    INTERPRETED,
    compiled,
    interpret,
    interpreted,
    passed_under_the_interpreter,
    thinned,
)
from tests.helpers.kernels.ptx import ptx

triton = pytest.importorskip("triton", reason="triton is not installed: the kernels cannot run")
from hpcphotoz.kernels import project as kernel  # noqa: E402

pytestmark = pytest.mark.usefixtures("poison")

interpret(kernel)
on_cuda = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")

Shape = tuple[int, int, int, int]
Problem = dict[str, Any]
Step = Callable[..., Tensor]
l2: Step = kernel.launch_l2 if INTERPRETED else kernel.l2
flux: Step = kernel.launch_flux if INTERPRETED else kernel.flux
OPERATORS = [(kernel.l2, reference.l2), (kernel.flux, reference.flux)]
SHAPES: list[Shape] = [
    # n, bands, height, width
    (1, 5, 3, 3),  # smaller than any block, odd planes
    (1, 1, 8, 8),  # one band; exactly a block of 64
    (2, 3, 7, 11),  # more than a block of 64, not a multiple
    (1, 6, 4, 33),  # three blocks of 64 a plane, the last nearly empty
]
FORMATS = [torch.contiguous_format, torch.channels_last]
# The type of the gradient, then: per object, masked, flagged.
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
    """The pixels that may change."""
    found: Tensor = torch.ones_like(p["x0"], dtype=torch.bool)
    for may in (p.get("mask"), p.get("active")):
        if may is not None:
            found &= may if may.ndim == 4 else may[:, None, None, None]
    return found


def scale(p: Problem) -> Tensor:
    """No smaller than any number that is rounded on the way to a pixel."""
    x0: Tensor = p["x0"]
    adv: Tensor = p["adv"]
    return x0.abs() + (adv - x0).abs() + per_pixel(p, "eps") + per_pixel(p, "step")


def close(found: Tensor, wanted: Tensor, p: Problem, units: float) -> None:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if found.numel() == 0:  # torch gives an empty channels_last tensor other strides on a GPU than on a CPU
        return
    assert found.stride() == wanted.stride()
    error = (found - wanted).abs() / (UNIT * scale(p))
    assert (error <= units).all(), f"off by {float(error.max())} units in the last place"
    assert torch.equal(found[~free(p)], p["adv"][~free(p)])


@compiled
@pytest.mark.timeout(600)  # seconds on a machine of its own, minutes beside other work
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernels_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "", slow=slow) >= (36 if slow else 60)


# Of l2, five numbers are rounded on the way to a pixel, by half a unit of `scale` at most each; two norms are
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
        close(kernel.launch_l2(**p, block=block), reference.l2(**p), p, L2_UNITS)


# Of flux, the shift is the root of a sum of up to 132 rounded numbers: a few units of that sum, shared among
# the pixels that are not at the edge of their box, of which these planes have several.
FLUX_UNITS = 16.0


@interpreted
@pytest.mark.parametrize(("case", "shape"), thinned(list(product(CASES, SHAPES)), lambda k: k % 3 == 0))
def test_flux_kernel_equals_reference_in_one_block(shape: Shape, case: Any) -> None:
    p = problem(shape, case, FORMATS[CASES.index(case) % 2])
    close(kernel.launch_flux(**p), reference.flux(**p), p, FLUX_UNITS)


@interpreted
@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[4]])
@pytest.mark.parametrize("shape", [(1, 2, 7, 11), (1, 1, 4, 33)])
def test_flux_kernel_equals_reference_in_several_blocks(shape: Shape, case: Any) -> None:
    p = problem(shape, case, FORMATS[CASES.index(case) % 2])
    later = torch.arange(shape[2] * shape[3]).reshape(shape[2:]) >= 64
    p["adv"] = torch.where(later, p["adv"] + 0.5, p["x0"])  # no shift that the first block knows of will do
    close(kernel.launch_flux(**p, block=64, one_block=64), reference.flux(**p), p, FLUX_UNITS)


@interpreted
@pytest.mark.parametrize("step", [l2, flux])
def test_no_objects(step: Step) -> None:
    for layout in FORMATS:
        p = problem((0, 5, 8, 8), CASES[1], layout)
        assert step(**p).shape == (0, 5, 8, 8)


@on_cuda
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    "shape", [*SHAPES, (0, 5, 8, 8), (16, 5, 64, 64), (1, 2, 128, 128), (1, 2, 130, 150)]
)
def test_operators_on_cuda_equal_reference(shape: Shape, layout: torch.memory_format, case: Any) -> None:
    p = problem(shape, case, layout)
    moved = problem(shape, case, layout, device="cuda")
    # The sums are longer here, their rounding grows with the root of the number of pixels at most.
    more = max(1.0, (shape[2] * shape[3] / 132) ** 0.5)
    close(kernel.l2(**moved).cpu(), reference.l2(**p), p, more * L2_UNITS)
    close(kernel.flux(**moved).cpu(), reference.flux(**p), p, more * FLUX_UNITS)


@on_cuda
@pytest.mark.parametrize("step", [kernel.l2, kernel.flux])
def test_a_graph_reads_the_parameters_at_each_replay(step: Step) -> None:
    p = problem((4, 5, 16, 16), CASES[1], device="cuda")
    step(**p)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(**p)
    for _ in range(2):
        p["eps"] *= 0.5
        p["active"].logical_not_()
        graph.replay()
        assert torch.equal(found, step(**p))


def ellipsoid(p: Problem, out: Tensor) -> tuple[Tensor, Tensor]:
    """|delta / eps| of each object, in float64, and what rounding may add to a norm of 1."""
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
        p["eps"][..., -1:] = 0  # a closed band
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
        p["x0"] = p["x0"].clamp(per_pixel(p, "lo"), per_pixel(p, "hi"))  # where it is not, the bounds may win
        once = l2(**p)
        again = p | {"adv": once, "grad": None}
        close(l2(**again), once, again, 2.0)  # the norm is 1 to rounding, so that a pixel moves by its own
        for grad in (None, torch.zeros_like(once), torch.full_like(once, torch.nan)):
            wide = again | {"eps": 1000 * p["eps"], "grad": grad}
            assert torch.equal(l2(**wide), once)


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", SHAPES)
def test_l2_takes_a_full_step_whatever_the_size_of_the_gradient(shape: Shape, size: float) -> None:
    p = interior(shape, eps=1e6)
    p["step"] = 0.1 + torch.rand(shape[1])
    grad = p["grad"]
    out = l2(**p | {"grad": size * grad})
    taken = (out.double() / per_pixel(p, "step")).flatten(1).norm(dim=1)
    torch.testing.assert_close(taken, torch.ones_like(taken), rtol=16 * UNIT, atol=0)
    # Of all steps of that length the one that climbs most: d = step^2 grad / |step grad|. Below 1e-37 a
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


@pytest.mark.parametrize("step", [l2, flux])
def test_a_nan_gradient_counts_as_zero_and_an_infinite_one_gives_no_nan(step: Step) -> None:
    for case in [case for case in FEW if case[0] is not None]:
        p = problem((2, 3, 7, 11), case)
        zero = p | {"grad": torch.where(p["grad"].isnan(), 0, p["grad"])}
        out = step(**p)
        assert out.isfinite().all() and torch.equal(out, step(**zero))


@pytest.mark.parametrize("step", [l2, flux])
def test_what_may_not_change_stays_and_does_not_count(step: Step) -> None:
    p = problem((2, 3, 7, 11), (torch.float32, True, True, True))
    out = step(**p)
    assert torch.equal(out[~free(p)], p["adv"][~free(p)])
    assert (out != p["adv"])[free(p)].any()
    other = {name: p[name].clone() for name in ("adv", "grad")}
    other["adv"][~free(p)] += 0.5
    other["grad"][~free(p)] = 1e20
    assert torch.equal(step(**p | other)[free(p)], out[free(p)])


@pytest.mark.parametrize("step", [l2, flux])
def test_an_object_does_not_see_the_others(step: Step) -> None:
    p = problem((2, 3, 7, 11), (torch.float32, True, True, True))
    whole = step(**p)
    for n in range(2):
        one = {name: t if t.shape == (3,) else t[n : n + 1] for name, t in p.items()}
        # The reference's sums may be taken in another order for another batch.
        close(step(**one), whole[n : n + 1], one, FLUX_UNITS)


def summed(p: Problem, out: Tensor) -> tuple[Tensor, Tensor]:
    """|sum of delta| of each object and band, in float64, and what rounding may add to 0."""
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
            close(flux(**again | {"grad": grad}), once, again, 4.0)  # x0 + delta, adv - x0, less a shift of 0


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
    """Where the sum of the shifted changes has flat pieces, steep ones, and many or few ends of pieces."""
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
    """Gradients whose median is hard: ties, both zeros, the least and the greatest numbers, one sign only."""
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
    yield torch.nextafter(torch.ones(pixels), plain)  # neighbours of 1


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
            # Less the mean, which makes the sum zero. Any other median moves a pixel by 1.
            torch.testing.assert_close(found[may], sign - sign.mean() if len(g) else g, rtol=0, atol=1e-6)
            assert (found[~may] == 0).all()


@pytest.mark.parametrize(("operator", "definition"), OPERATORS)
def test_operators_equal_reference_on_the_cpu(operator: Step, definition: Step) -> None:
    for layout in FORMATS:
        for case in CASES:
            p = problem((2, 3, 7, 11), case, layout)
            found, wanted = operator(**p), definition(**p)
            assert torch.equal(found, wanted) and found.stride() == wanted.stride() == p["x0"].stride()


@compiled
@pytest.mark.parametrize(("case", "layout"), [(CASES[1], FORMATS[0]), (CASES[4], FORMATS[1])])
@pytest.mark.parametrize("operator", [kernel.l2, kernel.flux])
def test_operators_pass_opcheck(operator: Any, case: Any, layout: torch.memory_format) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares what it leaves uninitialised
    torch.library.opcheck(operator, (), problem((2, 5, 4, 4), case, layout))


@compiled
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("launch", [kernel.launch_l2, kernel.launch_flux])
def test_the_launch_can_be_traced(launch: Step, case: Any) -> None:
    # As torch.compile sees it on a GPU: the kernel and the choice of device inside a graph.
    p = problem((2, 5, 4, 4), case, torch.channels_last)
    given = {name: value for name, value in p.items() if value is not None}

    def run(*tensors: Tensor) -> Tensor:
        return launch(**dict.fromkeys(p) | dict(zip(given, tensors, strict=True)))

    graph = make_fx(run, tracing_mode="fake")(*given.values())
    assert "triton_kernel_wrapper" in graph.code


@compiled
@pytest.mark.parametrize(("case", "layout"), [(CASES[0], FORMATS[0]), (CASES[1], FORMATS[1])])
@pytest.mark.parametrize(
    ("launch", "size", "threads"),
    [
        (kernel.launch_l2, 64, 512),
        (kernel.launch_flux, 64, 256),
        (kernel.launch_flux, 128, 1024),
        (kernel.launch_flux, 160, 256),
    ],
)
def test_what_an_h100_would_run(
    monkeypatch: pytest.MonkeyPatch,
    launch: Step,
    size: int,
    threads: int,
    case: Any,
    layout: torch.memory_format,
) -> None:
    p = problem((1, 2, size, size), case, layout)
    code = ptx(monkeypatch, kernel, lambda: launch(**p))
    assert f".reqntid {threads}" in code
    assert ".ftz" not in code and "div.full" not in code  # the least gradients count, the divisions are exact


@compiled
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("operator", "definition"), OPERATORS)
def test_operators_compile(operator: Step, definition: Step, backend: str) -> None:
    p = problem((2, 3, 7, 11), CASES[3], torch.channels_last)
    whole = torch.compile(lambda **p: operator(**p), fullgraph=True, backend=backend)
    close(whole(**p), definition(**p), p, FLUX_UNITS)  # Inductor's sums have their own order


@compiled
@pytest.mark.parametrize("operator", [kernel.l2, kernel.flux])
def test_operators_refuse_what_they_would_get_wrong(operator: Step) -> None:
    p = problem((2, 5, 4, 4), (torch.float32, False, True, True))
    strided = torch.randn(2, 5, 4, 8)[..., ::2]
    wrong: dict[str, list[Tensor]] = {
        "x0": [p["x0"].double(), p["x0"][0]],
        "adv": [p["adv"].double(), p["adv"][:1], p["adv"].contiguous(memory_format=torch.channels_last)],
        "grad": [p["grad"].double(), p["grad"][:1], strided, p["grad"].to("meta")],
        "eps": [p["eps"][..., :4], p["eps"].double(), p["eps"].expand(2, 5)],
        "step": [p["step"][:1]],
        "lo": [p["lo"][..., :4]],
        "hi": [p["hi"].half()],
        "mask": [p["x0"], p["mask"][:1], p["mask"].contiguous(memory_format=torch.channels_last)],
        "active": [p["active"].int(), p["active"][:1], p["active"].to("meta")],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} "):
                operator(**(p | {name: value}))
