"""Bias, PReLU and pooling: kernels and reference equal an oracle in float64; the operators differentiate."""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels.network import reference
from hpcphotoz.kernels.network.reference import POOLINGS
from tests.helpers.kernels.interpreter import (
    compiled,
    interpret,
    interpreted,
    on_cuda,
    passed_under_the_interpreter,
    thinned,
)
from tests.helpers.kernels.prelu_problems import (
    DTYPES,
    LAYOUTS,
    SHAPES,
    Problem,
    Results,
    Shape,
    assert_right,
    problem,
)
from tests.helpers.kernels.step_problems import assert_identical
from tests.helpers.training.steps import Recorded

triton = pytest.importorskip("triton", reason="triton is not installed: the kernels cannot run")
from hpcphotoz.kernels.network import backward, forward, places
from hpcphotoz.kernels.network import prelu_pool as operators

interpret(forward)
interpret(backward)
pytestmark = pytest.mark.usefixtures("poison")
CASES = list(product(SHAPES, POOLINGS, LAYOUTS, DTYPES))


def launched(p: Problem, block: int) -> Results:
    """The results of the kernels."""
    of_x, of_bias, of_slope = backward.launch(*p, block=block)
    return Results(forward.launch(*p.forward, block=block), of_x, of_bias, of_slope)


def referenced(p: Problem) -> Results:
    """The results of the reference."""
    return Results(reference.prelu_pool(*p.forward), *reference.prelu_pool_gradients(*p))


@interpreted
@pytest.mark.parametrize(
    ("shape", "pooling", "layout", "dtype"), thinned(CASES, lambda k: k % 4 == k // 4 % 4)
)
def test_kernels_equal_the_oracle_and_the_reference(
    shape: Shape, pooling: str, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    p = problem(shape, pooling, dtype, layout)
    for block in (64, 1024):
        found = launched(p, block)
        assert_right(found, p)
        (alone,) = backward.launch(*p, parameters=False, block=block)
        assert_identical(alone, found.of_x)
        assert alone.stride() == p.x.stride() or p.x.numel() == 0
    if dtype == torch.float32:  # bfloat16 is cut off by the interpreter, not rounded
        wanted = referenced(p)
        assert torch.equal(found.out, wanted.out) and torch.equal(found.of_x, wanted.of_x)


@interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_adds_parameter_gradients_over_several_tiles(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many tiles a program as allowed, in the last program fewer, some of them past the end."""
    for pooling, sizes in (("none", (1, 9)), ("halve", (4,))):
        p = problem((5, 7, 6, 6), pooling, layout=layout)
        for programs in sizes:
            monkeypatch.setattr(backward, "_PROGRAMS", programs)
            assert_right(launched(p, 64), p)


@interpreted
@pytest.mark.parametrize("pooling", POOLINGS)
def test_kernel_reads_parameters_of_bfloat16(pooling: str) -> None:
    p = problem((2, 3, 4, 4), pooling, torch.bfloat16, torch.channels_last, parameters=torch.bfloat16)
    assert_right(launched(p, 64), p)


@interpreted
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_keeps_numbers_that_are_not_finite_where_they_belong(
    pooling: str, layout: torch.memory_format
) -> None:
    p = problem((3, 7, 5, 6), pooling, layout=layout)
    p.x[1, 2, 4, 5], p.x[0, 3, 0, 0], p.x[2, 6, 1, 3] = torch.nan, torch.inf, -torch.inf
    p.grad[0, 1, 0, 0], p.grad[2, 4, -1, -1] = torch.nan, torch.inf
    p.bias[0], p.slope[5] = torch.nan, -torch.inf
    found, wanted = launched(p, 64), referenced(p)
    assert_identical(found.out, wanted.out)
    assert_identical(found.of_x, wanted.of_x)
    for name in ("of_bias", "of_slope"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert torch.equal(ours.isfinite(), theirs.isfinite()) and ours.isfinite().any()


@interpreted
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_reads_gradients_in_any_layout(pooling: str, layout: torch.memory_format) -> None:
    """As the backward pass of a concatenation gives them: slices of channels; and those of a sum."""
    p = problem((2, 5, 3, 4), pooling, layout=layout)
    n, channels, height, width = p.grad.shape
    wide = torch.full((n, channels + 9, height, width), torch.nan).contiguous(memory_format=layout)
    wide[:, 4 : 4 + channels] = p.grad
    other = LAYOUTS[layout == torch.contiguous_format]
    grads = {
        "a slice": wide[:, 4 : 4 + channels],
        "another layout": p.grad.contiguous(memory_format=other),
        "transposed": p.grad.transpose(2, 3).contiguous().transpose(2, 3),
    }
    assert places.strided(grads["a slice"], layout == torch.channels_last)[0] is grads["a slice"], "copied"
    for name, grad in grads.items():
        for ours, wanted in zip(backward.launch(grad, *p.forward), backward.launch(*p), strict=True):
            assert torch.equal(ours, wanted), name
    ones = p._replace(grad=torch.ones(()).expand_as(p.grad))
    assert_right(launched(ones, 64), ones)


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.slow
@pytest.mark.parametrize("slow", [False, True])
def test_kernels_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "test_kernel", slow=slow) >= 40


@pytest.mark.parametrize(("shape", "pooling", "layout", "dtype"), CASES)
def test_the_reference_equals_the_oracle(
    shape: Shape, pooling: str, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    p = problem(shape, pooling, dtype, layout)
    found = referenced(p)
    assert_right(found, p)
    assert torch.equal(reference.prelu_pool_input_gradient(*p), found.of_x)
    x, bias, slope = leaves = [t.clone().requires_grad_() for t in p.forward[:3]]
    out = reference.prelu_pool(x, bias, slope, pooling)
    assert_right(Results(out, *torch.autograd.grad(out, leaves, p.grad)), p)


def test_the_reference_on_a_row_worked_out_by_hand() -> None:
    x = torch.tensor([3.0, -5.0, 0.0, 1.0, 7.0]).view(1, 1, 1, 5)  # + 1: 4, -4, 1, 2, 8
    bias, slope = torch.tensor([1.0]), torch.tensor([0.5])  # after the PReLU: 4, -2, 1, 2, 8
    wanted = {
        "none": [4.0, -2.0, 1.0, 2.0, 8.0],
        "halve": [1.0, 1.5, 8.0],
        "smooth": [0.5, -0.25, 0.75, 2.5, 2.0],  # the second row is padding
        "smooth_edge": [1.0, -0.5, 1.5, 5.0, 8.0],
    }
    for pooling, numbers in wanted.items():
        assert reference.prelu_pool(x, bias, slope, pooling).flatten().tolist() == numbers
    grads = reference.prelu_pool_gradients(torch.ones(1, 1, 1, 3), x, bias, slope, "halve")
    assert [t.flatten().tolist() for t in grads] == [[0.5, 0.25, 0.5, 0.5, 1.0], [2.75], [-2.0]]


def test_under_autocast_the_reference_stays_in_float32() -> None:
    p = problem((2, 3, 4, 4), "halve")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reference.prelu_pool(*p.forward), operators.prelu_pool(*p.forward))
        assert_right(referenced(p), p)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_pass_opcheck(pooling: str, layout: torch.memory_format) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs
    for dtype in DTYPES:
        p = problem((2, 3, 5, 6), pooling, dtype, layout)
        x, bias, slope = (t.clone().requires_grad_() for t in (p.x, p.bias, p.slope))
        torch.library.opcheck(operators.prelu_pool, (x, bias, slope, pooling))
        torch.library.opcheck(operators.prelu_pool_gradients, tuple(p))
        torch.library.opcheck(operators.prelu_pool_input_gradient, tuple(p))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_frozen_parameters_cost_no_sums(pooling: str) -> None:
    """As in an attack; where one of them is trained, all gradients come from one pass."""
    p = problem((2, 3, 5, 6), pooling)
    for wanted in ((0,), (0, 1, 2), (2,), (0, 1)):
        tensors = [t.clone().requires_grad_(k in wanted) for k, t in enumerate((p.x, p.bias, p.slope))]
        out = operators.prelu_pool(*tensors, pooling)
        with Recorded("prelu_pool") as seen:
            grads = torch.autograd.grad(out, [tensors[k] for k in wanted], p.grad)
        name = "prelu_pool_input_gradient" if wanted == (0,) else "prelu_pool_gradients"
        assert seen.found == [f"hpcphotoz.{name}.default"]
        for k, grad in zip(wanted, grads, strict=True):
            assert torch.equal(grad, referenced(p)[1 + k])


def test_a_second_derivative_is_refused() -> None:
    p = problem((2, 3, 4, 4), "none")
    x = p.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(
        operators.prelu_pool(x, *p.forward[1:]).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="prelu_pool_input_gradient"):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_operator_compiles_as_one_graph_with_its_gradient(frozen: bool) -> None:
    torch._dynamo.reset()
    p = problem((2, 3, 5, 6), "smooth")

    def layer(x: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
        found: Tensor = operators.prelu_pool(2 * x, bias, slope, p.pooling)
        return found

    found = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        tensors = [t.clone().requires_grad_(not frozen or k == 0) for k, t in enumerate(p.forward[:3])]
        out = call(*tensors)
        grads = torch.autograd.grad(out, [t for t in tensors if t.requires_grad], p.grad)
        found.append((out, *grads))
    for ours, plain in zip(*found, strict=True):
        assert torch.equal(ours, plain)


@compiled
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_launches_can_be_traced(pooling: str, layout: torch.memory_format) -> None:
    # As torch.compile sees them on a GPU.
    p = problem((2, 3, 5, 6), pooling, layout=layout)

    def gradients(*given: Tensor, parameters: bool) -> tuple[Tensor, ...]:
        grad, x, bias, slope = given
        return backward.launch(grad, x, bias, slope, pooling, parameters)

    graphs = [
        make_fx(lambda x, bias, slope: forward.launch(x, bias, slope, pooling), tracing_mode="fake")(
            *p.forward[:3]
        ),
        make_fx(partial(gradients, parameters=True), tracing_mode="fake")(*p[:4]),
        make_fx(partial(gradients, parameters=False), tracing_mode="fake")(*p[:4]),
    ]
    assert all("triton_kernel_wrapper" in graph.code for graph in graphs)


X = torch.zeros(2, 3, 5, 6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": X[0]}, r"x \(3, 5, 6\)"),
        ({"x": X.double()}, "float64"),
        ({"x": torch.zeros(2, 3, 5, 12)[..., ::2]}, "call .contiguous"),
        ({"x": torch.empty(2**16, 3, 2**8, 2**8, device="meta")}, "fewer than 2.31 pixels"),
        ({"bias": torch.zeros(4)}, r"bias \(4,\).*\(C,\) = \(3,\)"),
        ({"bias": torch.zeros(3, device="meta")}, "on meta"),
        ({"slope": torch.zeros(6)[::2]}, "slope.*want contiguous"),
        ({"slope": torch.zeros(3, dtype=torch.int64)}, "int64"),
        ({"pooling": "max"}, "pooling 'max'.*smooth_edge"),
        ({"grad": X}, r"grad \(2, 3, 5, 6\).*want \(2, 3, 3, 3\)"),
        ({"grad": torch.zeros(2, 3, 3, 3).bfloat16()}, "bfloat16"),
    ],
)
def test_operators_refuse_what_they_would_get_wrong(given: dict[str, Any], said: str) -> None:
    right: dict[str, Any] = {"x": X, "bias": torch.zeros(3), "slope": torch.zeros(3), "pooling": "halve"}
    grad = {"grad": torch.zeros(2, 3, 3, 3)}
    for operator in (operators.prelu_pool_gradients, operators.prelu_pool_input_gradient):
        with pytest.raises(ValueError, match=said):
            operator(**{**right, **grad, **given})
    if "grad" not in said and "grad" not in given:
        with pytest.raises(ValueError, match=said):
            operators.prelu_pool(**{**right, **given})


@on_cuda
@pytest.mark.parametrize(("shape", "pooling", "layout", "dtype"), CASES)
def test_operators_on_cuda_equal_the_oracle(
    shape: Shape, pooling: str, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    p = problem(shape, pooling, dtype, layout, device="cuda")
    of_x, of_bias, of_slope = operators.prelu_pool_gradients(*p)
    assert_right(Results(operators.prelu_pool(*p.forward), of_x, of_bias, of_slope), p)
    assert torch.equal(operators.prelu_pool_input_gradient(*p), of_x)


@on_cuda
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_cuda_the_activations_of_the_inception_are_right(pooling: str, dtype: torch.dtype) -> None:
    """Sizes at which a program has several tiles, and channels no multiple of the width of a load."""
    for shape in ((64, 64, 64, 64), (64, 92, 16, 16), (64, 48, 33, 33)):
        p = problem(shape, pooling, dtype, torch.channels_last, device="cuda")
        wanted = referenced(p)
        of_x, of_bias, of_slope = operators.prelu_pool_gradients(*p)
        assert_identical(operators.prelu_pool(*p.forward), wanted.out)
        assert_identical(of_x, wanted.of_x)
        sums = ((of_bias, wanted.of_bias, wanted.of_x), (of_slope, wanted.of_slope, wanted.of_x))
        for ours, theirs, terms in sums:  # random signs: errors of a sum grow as its root
            assert (ours - theirs).abs().max() <= 1e-5 * terms.float().abs().sum((0, 2, 3)).max()


@on_cuda
def test_a_cuda_graph_gives_the_same_at_each_replay() -> None:
    p = problem((8, 40, 9, 9), "halve", layout=torch.channels_last, device="cuda")
    x, bias, slope = leaves = [t.clone().requires_grad_() for t in (p.x, p.bias, p.slope)]

    def once() -> tuple[Tensor, ...]:
        out = operators.prelu_pool(x, bias, slope, p.pooling)
        return out.detach(), *torch.autograd.grad(out, leaves, p.grad)

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        once()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = once()
    for _ in range(2):
        x.data.neg_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, once(), strict=True))
