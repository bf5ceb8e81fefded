"""The random start: kernel and CPU path equal the reference bit for bit, and lie in the ball."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels.attack import start_reference as reference
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
from hpcphotoz.kernels.attack import start as kernel
from hpcphotoz.kernels.attack import start_on_cpu

pytestmark = pytest.mark.usefixtures("poison")

SHAPES: list[Shape] = [
    # n, bands, height, width; a program has 1024 pixels of an object, or 64 where `groups` is 16
    (2, 5, 3, 3),  # 45 pixels: three words of the last group belong to no pixel
    (1, 1, 16, 16),  # exactly four small programs; contiguous and channels_last at once
    (3, 3, 5, 7),  # 105 pixels: two small programs, a band ends within a group
    (2, 6, 16, 17),  # two programs, the second nearly empty
    (1, 2, 1, 1),  # half a group
]
FLAGS = [(False, False), (False, True), (True, False), (True, True)]  # per object, masked
interpret(kernel)


def problem(
    shape: Shape,
    layout: torch.memory_format = torch.contiguous_format,
    flags: tuple[bool, bool] = (False, False),
    device: str = "cpu",
) -> Problem:
    """Images in and out of the bounds, the last band free above; object ids of both signs and above 2^32."""
    per_object, masked = flags
    g = torch.Generator().manual_seed(0)
    n, bands = shape[:2]
    hi = 1 + torch.rand((n, bands) if per_object else (bands,), generator=g)
    hi[..., -1:] = torch.inf
    found: Problem = {
        "x0": torch.randn(shape, generator=g).contiguous(memory_format=layout),
        "object_id": (torch.arange(n) - 1) * (2**40 + 12345),
        "eps": torch.rand((n, bands) if per_object else (bands,), generator=g),
        "lo": -0.5 - torch.rand((bands,) if per_object else (n, bands), generator=g),
        "hi": hi,
        "key": torch.tensor([2**33 + 1, 4]),
        "mask": (torch.rand(shape, generator=g) < 0.7).contiguous(memory_format=layout) if masked else None,
    }
    return {name: t if t is None else t.to(device) for name, t in found.items()}


@interpreted
@pytest.mark.parametrize(
    ("shape", "layout", "groups"),
    thinned(list(product(SHAPES, FORMATS, [16, 256])), lambda k: k % 4 in (0, 3)),
)
def test_kernel_bit_for_bit(shape: Shape, layout: torch.memory_format, groups: int) -> None:
    for flags in FLAGS:
        p = problem(shape, layout, flags)
        assert_identical(kernel.launch(**p, groups=groups), reference.start(**p))
    for key in ((-1, -1), (2**63 - 1, 2**40)):
        q = p | {"key": torch.tensor(key)}
        assert_identical(kernel.launch(**q, groups=groups), reference.start(**q))


@interpreted
@pytest.mark.parametrize("name", ["x0", "eps", "lo", "hi"])
def test_nan_bit_for_bit(name: str) -> None:
    p = problem(SHAPES[0])
    p[name].view(-1)[::3] = torch.nan
    assert_identical(kernel.launch(**p), reference.start(**p))


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernel_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "bit_for_bit", slow=slow) >= 10


@compiled
@pytest.mark.parametrize("layout", FORMATS)
def test_what_an_h100_would_run(monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format) -> None:
    p = problem((2, 5, 64, 64), layout, (False, True))
    code = ptx(monkeypatch, kernel, lambda: kernel.launch(**p))
    # Eight pixels a thread, so two Philox calls: ten rounds each, two high halves of a product a round.
    assert 20 < code.count("mul.hi.u32") <= 40
    if layout == torch.contiguous_format:
        assert "ld.global.v4" in code and "st.global.v4" in code


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [*SHAPES, (7, 5, 33, 33)])
def test_operator_on_the_cpu_equals_reference(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, layout: torch.memory_format
) -> None:
    for flags in FLAGS:
        p = problem(shape, layout, flags)
        for groups in (1, 3000, 20480):  # one object at a time, two and a rest, all
            monkeypatch.setattr(start_on_cpu, "_GROUPS", groups // torch.get_num_threads())
            assert_identical(kernel.start(**p), reference.start(**p))
    for key in ((-1, -1), (2**63 - 1, 2**40)):
        q = p | {"key": torch.tensor(key)}
        assert_identical(kernel.start(**q), reference.start(**q))


@on_cuda
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("shape", [*SHAPES, (64, 5, 64, 64)])
def test_operator_on_cuda_equals_the_cpu(
    shape: Shape, layout: torch.memory_format, flags: tuple[bool, bool]
) -> None:
    found = kernel.start(**problem(shape, layout, flags, device="cuda"))
    assert_identical(found.cpu(), kernel.start(**problem(shape, layout, flags)))


@on_cuda
def test_a_graph_reads_the_key_at_each_replay() -> None:
    p = problem((4, 5, 16, 16), device="cuda")
    kernel.start(**p)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = kernel.start(**p)
    for key in ((2**33 + 1, 4), (2**33 + 1, 5), (7, 4)):
        p["key"].copy_(torch.tensor(key))
        graph.replay()
        assert_identical(found, reference.start(**p))


@pytest.mark.parametrize("start", [kernel.start, reference.start])
def test_a_start_belongs_to_the_object_not_to_its_place(start: Any) -> None:
    p = problem((4, 5, 6, 7), flags=(True, True))
    whole = start(**p)
    for order in ([3], [2, 0], [1, 3, 2, 0]):
        q = {k: v if k == "key" or v.ndim == 1 and k != "object_id" else v[order] for k, v in p.items()}
        assert torch.equal(start(**q), whole[order])


@pytest.mark.parametrize("start", [kernel.start, reference.start])
def test_a_start_differs_by_seed_epoch_and_object(start: Any) -> None:
    p = problem((3, 5, 6, 7)) | {"lo": torch.full((5,), -torch.inf), "hi": torch.full((5,), torch.inf)}
    first = start(**p)
    changes = [("key", 0, 2**40), ("key", 0, 1), ("key", 1, 1)]
    changes += [("object_id", k, by) for k in range(3) for by in (1, 2**32)]
    for name, k, by in changes:
        q = p | {name: p[name].clone()}
        q[name][k] += by
        moved = (start(**q) != first).float().mean((1, 2, 3))
        # Of 210 numbers of 24 bits hardly one returns by chance; the objects that were not changed stay.
        for n in range(3):
            assert moved[n] > 0.95 if name == "key" or k == n else moved[n] == 0


@pytest.mark.parametrize("start", [kernel.start, reference.start])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_start_is_in_the_ball_and_in_the_bounds(start: Any, shape: Shape) -> None:
    for flags in FLAGS:
        p = problem(shape, torch.contiguous_format, flags)
        x0, eps, lo, hi = (p[k] if k == "x0" else p[k][..., None, None] for k in ("x0", "eps", "lo", "hi"))
        found = start(**p)
        # The ball ends at x0 + eps rounded once, half an ulp, and the difference is rounded once more.
        ulp = 2.0**-23 * (x0.abs() + eps)
        outside = (x0 < lo) | (x0 > hi)
        change = torch.ones_like(x0, dtype=torch.bool) if p["mask"] is None else p["mask"]
        assert ((found - x0).abs() <= eps + ulp)[~outside].all()
        assert ((found >= lo) & (found <= hi))[change].all()
        assert torch.equal(found[~change], x0[~change])


@pytest.mark.parametrize("layout", FORMATS)
def test_no_objects_give_an_empty_start(layout: torch.memory_format) -> None:
    p = problem((0, 5, 8, 8), layout, (True, True))
    assert_identical(kernel.start(**p), p["x0"])
    assert_identical(kernel.launch(**p), p["x0"])


@pytest.mark.parametrize("start", [kernel.start, reference.start])
def test_a_start_fills_the_ball(start: Any) -> None:
    p = problem((64, 5, 10, 20)) | {"lo": torch.full((5,), -torch.inf), "hi": torch.full((5,), torch.inf)}
    u = (start(**p) - p["x0"]) / p["eps"][:, None, None]
    # Standard errors of mean and variance of 12,800 numbers a band: 0.0051 and 0.0026; five of each.
    assert (u.mean((0, 2, 3)).abs() < 0.026).all()
    assert ((u.var((0, 2, 3)) - 1 / 3).abs() < 0.013).all()


@pytest.mark.parametrize("start", [kernel.start, reference.start])
def test_the_layout_changes_no_number(start: Any) -> None:
    for shape in SHAPES:
        plain, last = (start(**problem(shape, layout, (False, True))) for layout in FORMATS)
        assert torch.equal(plain, last)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("layout", FORMATS)
def test_operators_pass_opcheck(flags: tuple[bool, bool], layout: torch.memory_format) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares uninitialised memory too
    p = problem((2, 5, 4, 4), layout, flags)
    torch.library.opcheck(kernel.start, (), p)
    torch.library.opcheck(kernel.on_cpu, (), p)


@compiled
@pytest.mark.parametrize("flags", FLAGS)
def test_the_launch_can_be_traced(flags: tuple[bool, bool]) -> None:
    # As torch.compile sees it on a GPU: the kernel and the choice of device inside a graph.
    p = problem((2, 5, 4, 4), torch.channels_last, flags)
    names = [name for name, value in p.items() if value is not None]

    def launch(*tensors: Tensor) -> Tensor:
        given: Problem = dict(zip(names, tensors, strict=True))
        return kernel.launch(**given)

    graph = make_fx(launch, tracing_mode="fake")(*(p[name] for name in names))
    assert "triton_kernel_wrapper" in graph.code


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_operator_compiles(backend: str) -> None:
    p = problem((2, 5, 4, 4), torch.channels_last, (True, True))
    whole = torch.compile(lambda **p: kernel.start(**p), fullgraph=True, backend=backend)
    assert_identical(whole(**p), reference.start(**p))
    p["key"] += 1  # is read anew
    assert_identical(whole(**p), reference.start(**p))


def test_operator_refuses_what_it_would_get_wrong() -> None:
    p = problem((2, 5, 4, 4))
    wrong = {
        "x0": [p["x0"].double(), p["x0"][0], p["x0"][..., ::2]],
        "object_id": [p["object_id"].int(), p["object_id"][:1], p["object_id"].to("meta")],
        "eps": [p["eps"][:4], p["eps"].double(), p["eps"].expand(2, 5)],
        "lo": [p["lo"][..., :4]],
        "hi": [p["hi"].half()],
        "key": [p["key"][:1], p["key"].int(), p["key"].repeat(2)[::2], p["key"].to("meta")],
        "mask": [p["x0"], p["x0"][:1] > 0, (p["x0"] > 0).contiguous(memory_format=torch.channels_last)],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} "):
                kernel.start(**(p | {name: value}))
