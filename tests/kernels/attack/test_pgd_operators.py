"""The operators of the L-infinity steps: they compile, can be traced and captured, and refuse bad input."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels.attack import reference
from hpcphotoz.kernels.checks import StepArguments
from tests.helpers.kernels.interpreter import (
    compiled,
    on_cuda,
)
from tests.helpers.kernels.pgd_problems import FLAGS, GRADS, SHAPES, problem, with_previous
from tests.helpers.kernels.ptx import ptx
from tests.helpers.kernels.step_problems import FORMATS, Problem, Shape, assert_identical

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels.attack import pgd as kernel

pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("flags", [FLAGS[0], FLAGS[7]])
def test_operators_pass_opcheck(layout: torch.memory_format, flags: tuple[bool, ...]) -> None:
    p = problem((2, 5, 4, 4), torch.bfloat16, layout, flags)
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs
    torch.library.opcheck(kernel.pgd, (), p)
    torch.library.opcheck(kernel.momentum, (), with_previous(p))
    torch.library.opcheck(kernel.pgd_, (), p)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_operators_compile_as_one_graph(backend: str) -> None:
    p = problem((2, 5, 4, 4), flags=FLAGS[7])

    def both(q: Problem) -> tuple[Tensor, ...]:
        new = kernel.pgd(**q)
        return 2 * new, kernel.momentum(**q, previous=new)

    found = torch.compile(both, fullgraph=True, backend=backend)(p)
    for a, b in zip(found, both(p), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@compiled
@pytest.mark.parametrize("tracing_mode", ["fake", "symbolic"])
@pytest.mark.parametrize("layout", FORMATS)
def test_the_launch_can_be_traced(layout: torch.memory_format, tracing_mode: Any) -> None:
    # As torch.compile sees it on a GPU, with a batch of any size too.
    p = problem((2, 5, 4, 4), torch.bfloat16, layout, FLAGS[7])

    def launch(*tensors: Tensor) -> Tensor:
        return kernel.launch(StepArguments(*tensors))

    def launch_in_place(*tensors: Tensor) -> Tensor:
        return kernel.launch(StepArguments(*tensors), in_place=True)

    in_order = StepArguments(**p)
    for call in (launch, launch_in_place):
        graph = make_fx(call, tracing_mode=tracing_mode)(*in_order)
        assert "triton_kernel_wrapper" in graph.code


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
    ],
)
def test_operators_refuse_what_they_would_get_wrong(given: Problem, said: str) -> None:
    for step in (kernel.pgd, kernel.pgd_):
        with pytest.raises(ValueError, match=said):
            step(**{**problem((2, 5, 4, 4)), **given})


@pytest.mark.parametrize("layout", FORMATS)
def test_the_kernel_reads_16_bytes_at_a_time(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an H100, as Triton compiles it: four wide loads of each image a thread, nothing spilt."""
    p = problem((1, 5, 64, 64), layout=layout)
    text = ptx(monkeypatch, kernel, lambda: kernel.launch(StepArguments(**p)))
    wide = len(re.findall(r"ld\.global\.v4", text))
    assert wide >= 3 * 4 and text.count("st.global.v4") >= 4, f"{wide} wide loads"
    assert ".local" not in text


@pytest.mark.parametrize("layout", FORMATS)
def test_in_place_a_program_of_an_inactive_object_ends_at_once(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an H100, as Triton compiles it: a branch past everything; out of place there is none."""
    p = StepArguments(**problem((1, 5, 64, 64), layout=layout, flags=(False, False, True)))
    out, own = (ptx(monkeypatch, kernel, partial(kernel.launch, p, in_place=on)) for on in (False, True))
    assert not re.search(r"\bbra\b", out)
    branch = re.search(r"\bbra\b", own)
    assert branch and own[: branch.start()].count("ld.global") == 1, "the flag alone is read before it"


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
        if grad is not None:
            assert_identical(kernel.momentum(**with_previous(p)), reference.momentum(**with_previous(p)))
        wanted = reference.pgd(**p)
        kernel.pgd_(**p)
        assert_identical(p["adv"], wanted)


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
    p["active"].logical_not_()
    p["eps"].mul_(0.5)
    graph.replay()
    assert_identical(out, reference.pgd(**p))


@on_cuda
@pytest.mark.parametrize("layout", FORMATS)
def test_more_than_2_to_the_31_elements(layout: torch.memory_format) -> None:
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GB of free GPU memory")
    n = 2**31 // (5 * 64 * 64) + 2
    x0 = torch.empty(n, 5, 64, 64, device="cuda", memory_format=layout).zero_()
    grad = torch.ones_like(x0, dtype=torch.bfloat16)
    one, free = torch.ones(5, device="cuda"), torch.full((5,), torch.inf, device="cuda")
    out = kernel.pgd(x0, x0, grad, one, 0.5 * one, -free, free)
    assert (out[-3:] == 0.5).all() and (out[:3] == 0.5).all()
