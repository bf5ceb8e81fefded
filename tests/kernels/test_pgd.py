"""The L-infinity steps: the kernel equals the reference bit for bit, and the operators keep the ball."""

import re
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels import reference
from tests.helpers.kernels.interpreter import (
    compiled,
    interpret,
    interpreted,
    on_cuda,
    passed_under_the_interpreter,
    thinned,
)
from tests.helpers.kernels.ptx import ptx
from tests.helpers.kernels.step_problems import FORMATS, Problem, Shape, assert_identical

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels import pgd as kernel

pytestmark = pytest.mark.usefixtures("poison")

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
interpret(kernel)


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


def copy_of(wanted: Tensor) -> Tensor:
    return wanted.to(torch.bfloat16, memory_format=torch.channels_last)


@interpreted
@pytest.mark.parametrize(
    ("shape", "layout", "grad"), thinned(list(product(SHAPES, FORMATS, GRADS)), lambda k: k % 4 == k // 4 % 4)
)
def test_kernel_bit_for_bit(shape: Shape, grad: torch.dtype | None, layout: torch.memory_format) -> None:
    first = SHAPES.index(shape) + GRADS.index(grad) + FORMATS.index(layout)
    for flags in (
        FLAGS[first % 8],
        FLAGS[7 - first % 8],
    ):  # every flag is on and off for each of the other parameters
        p = problem(shape, grad, layout, flags)
        wanted = reference.pgd(**p)
        assert_identical(kernel.launch(**p), wanted)
        copy = torch.empty_like(wanted, dtype=torch.bfloat16, memory_format=torch.channels_last)
        assert_identical(kernel.launch(**p, copy=copy), wanted)
        truncated(copy, wanted)
        in_place = p["adv"].clone(memory_format=torch.preserve_format)
        assert kernel.launch(**{**p, "adv": in_place}, out=in_place) is in_place
        assert_identical(in_place, wanted)


@interpreted
@pytest.mark.parametrize(
    ("layout", "flags"), thinned(list(product(FORMATS, FLAGS)), lambda k: k % 8 in (0, 5, 7))
)
def test_small_blocks_and_every_flag_bit_for_bit(layout: torch.memory_format, flags: Any) -> None:
    p = problem((3, 5, 9, 16), torch.bfloat16, layout, flags)
    wanted = reference.pgd(**p)
    for block in (16, 64):
        copy = torch.full_like(wanted, torch.nan, dtype=torch.bfloat16, memory_format=torch.channels_last)
        q = p | {"adv": p["adv"].clone(memory_format=torch.preserve_format)}
        assert_identical(kernel.launch(**q, out=q["adv"], copy=copy, block=block), wanted)
        truncated(copy, wanted)


def truncated(copy: Tensor, wanted: Tensor) -> None:
    # The interpreter truncates to bfloat16 where a GPU rounds: an error below one unit in the eighth bit.
    assert copy.stride() == copy_of(wanted).stride()
    assert ((copy.float() - wanted).abs() <= 2.0**-7 * wanted.abs()).all()


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
        assert_identical(kernel.launch(**p), reference.momentum(**p))


@interpreted
@pytest.mark.parametrize("shape", thinned([(s,) for s in SHAPES[:4]], lambda k: k in (0, 2)))
def test_nan_images_bit_for_bit(shape: Shape) -> None:
    p = with_previous(problem(shape))
    for name in ("x0", "adv", "previous", "eps", "step", "lo", "hi"):
        q = p | {name: p[name].clone()}
        q[name].view(-1)[::3] = torch.nan
        assert_identical(kernel.launch(**q), reference.momentum(**q))
        q.pop("previous")
        assert_identical(kernel.launch(**q), reference.pgd(**q))


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


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("flags", [FLAGS[0], FLAGS[7]])
def test_operators_pass_opcheck(layout: torch.memory_format, flags: tuple[bool, ...]) -> None:
    p = problem((2, 5, 4, 4), torch.bfloat16, layout, flags)
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs
    torch.library.opcheck(kernel.pgd, (), p)
    torch.library.opcheck(kernel.pgd_copy, (), p)
    torch.library.opcheck(kernel.momentum, (), with_previous(p))
    torch.library.opcheck(kernel.pgd_, (), p)
    copy = torch.empty_like(p["x0"], dtype=torch.bfloat16, memory_format=torch.channels_last)
    torch.library.opcheck(kernel.pgd_copy_, (), p | {"copy": copy})


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_operators_compile_as_one_graph(backend: str) -> None:
    p = problem((2, 5, 4, 4), flags=FLAGS[7])

    def four(q: Problem) -> tuple[Tensor, ...]:
        new, copy = kernel.pgd_copy(**q)
        adv = q["adv"] + 0
        kernel.pgd_(**{**q, "adv": adv})
        return 2 * new, copy, adv, kernel.momentum(**q, previous=new)

    found = torch.compile(four, fullgraph=True, backend=backend)(p)
    for a, b in zip(found, four(p), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@compiled
@pytest.mark.parametrize("tracing_mode", ["fake", "symbolic"])
@pytest.mark.parametrize("layout", FORMATS)
def test_the_launch_can_be_traced(layout: torch.memory_format, tracing_mode: Any) -> None:
    # As torch.compile sees it on a GPU, with a batch of any size too.
    p = problem((2, 5, 4, 4), torch.bfloat16, layout, FLAGS[7])

    def in_place(copy: Tensor, *tensors: Tensor) -> Tensor:
        q: Problem = dict(zip(p, tensors, strict=True))
        return kernel.launch(**q, out=q["adv"], copy=copy)

    graph = make_fx(in_place, tracing_mode=tracing_mode)(copy_of(p["x0"]), *p.values())
    assert "triton_kernel_wrapper" in graph.code


def test_in_place_and_copies_are_the_same_numbers() -> None:
    p = problem((3, 5, 6, 6), flags=FLAGS[7])
    wanted = reference.pgd(**p)
    new, copy = kernel.pgd_copy(**p)
    assert_identical(new, wanted)
    assert_identical(copy, copy_of(wanted))
    adv, room = p["adv"].clone(), torch.empty_like(copy)
    kernel.pgd_copy_(**{**p, "adv": adv}, copy=room)
    assert_identical(adv, wanted)
    assert_identical(room, copy)
    kernel.pgd_(**{**p, "adv": adv.copy_(p["adv"])})
    assert_identical(adv, wanted)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"grad": torch.zeros(2, 5, 4, 8)[..., ::2]}, "contiguous"),
        ({"x0": torch.zeros(2, 5, 4, 8)[..., ::2]}, "call .contiguous"),
        ({"x0": torch.zeros(2, 5, 4, 4).double()}, "float32"),
        ({"grad": torch.zeros(2, 5, 4, 4, dtype=torch.int32)}, "bfloat16"),
        ({"adv": torch.zeros(1, 5, 4, 4)}, "adv"),
        ({"eps": torch.zeros(1, 5)}, r"eps \(1, 5\): want \(B,\) = \(5,\) or \(N, B\) = \(2, 5\)"),
        ({"lo": torch.zeros(4)}, "lo"),
        ({"mask": torch.zeros(2, 5, 4, 4)}, "mask"),
        ({"active": torch.zeros(3, dtype=torch.bool)}, "active"),
        ({"active": torch.zeros(2, dtype=torch.bool, device="meta")}, "active is on meta and .* on cpu"),
        ({"adv": torch.zeros(2, 5, 4, 4, device="meta")}, "adv is on meta and .* on cpu"),
        ({"hi": torch.zeros(5, 2).T}, r"hi has strides \(1, 2\): call .contiguous"),
        ({"step": torch.zeros(5).double()}, "step torch.float64: want torch.float32"),
        ({"copy": torch.zeros(2, 5, 4, 4)}, "copy .* torch.float32: want .* torch.bfloat16"),
        ({"copy": torch.zeros(2, 5, 4, 4).bfloat16()}, "copy has strides .*: want channels_last"),
    ],
)
def test_operators_refuse_what_they_would_get_wrong(given: Problem, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        operator = kernel.pgd_copy_ if "copy" in given else kernel.pgd_
        operator(**{**problem((2, 5, 4, 4)), **given})


@pytest.mark.parametrize("layout", FORMATS)
def test_the_kernel_reads_16_bytes_at_a_time(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an H100, as Triton compiles it: four wide loads of each image a thread, nothing spilt."""
    p = problem((1, 5, 64, 64), layout=layout)
    text = ptx(monkeypatch, kernel, lambda: kernel.launch(**p))
    wide = len(re.findall(r"ld\.global\.v4", text))
    assert wide >= 3 * 4 and text.count("st.global.v4") >= 4, f"{wide} wide loads"
    assert ".local" not in text


@on_cuda
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("shape", [*SHAPES, (64, 5, 64, 64)])
def test_operators_on_cuda_equal_the_reference(
    shape: Shape, grad: torch.dtype | None, layout: torch.memory_format
) -> None:
    for flags in FLAGS:
        p = problem(shape, grad, layout, flags, device="cuda")
        assert_identical(kernel.pgd(**p), reference.pgd(**p))
        new, copy = kernel.pgd_copy(**p)
        assert_identical(new, reference.pgd(**p))
        assert_identical(copy, copy_of(new))
        if grad is not None:
            assert_identical(kernel.momentum(**with_previous(p)), reference.momentum(**with_previous(p)))


@on_cuda
def test_a_cuda_graph_and_a_compiled_function_give_the_same() -> None:
    p = problem((8, 5, 64, 64), flags=FLAGS[7], device="cuda")
    compiled = torch.compile(lambda q: 2 * kernel.pgd(**q), fullgraph=True)
    torch.testing.assert_close(compiled(p), 2 * reference.pgd(**p))
    kernel.pgd(**p)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel.pgd(**p)
    p["grad"].neg_()
    graph.replay()
    assert_identical(out, reference.pgd(**p))
    copy = copy_of(out)
    kernel.pgd_copy_(**{**p, "adv": p["adv"].clone()}, copy=copy)  # compiled before it is captured
    with torch.cuda.graph(in_place := torch.cuda.CUDAGraph()):
        kernel.pgd_copy_(**p, copy=copy)
    p["active"].logical_not_()
    p["eps"].mul_(0.5)
    wanted = reference.pgd(**p)
    in_place.replay()
    assert_identical(p["adv"], wanted)
    assert_identical(copy, copy_of(wanted))


@on_cuda
@pytest.mark.parametrize("layout", FORMATS)
def test_more_than_2_to_the_31_elements(layout: torch.memory_format) -> None:
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GB of free GPU memory")
    n = 2**31 // (5 * 64 * 64) + 2
    x0 = torch.empty(n, 5, 64, 64, device="cuda", memory_format=layout).zero_()
    grad = torch.ones_like(x0, dtype=torch.bfloat16)
    one, free = torch.ones(5, device="cuda"), torch.full((5,), torch.inf, device="cuda")
    kernel.pgd_(x0, x0.clone(), grad, one, 0.5 * one, -free, free)
    assert (x0[-3:] == 0.5).all() and (x0[:3] == 0.5).all()
