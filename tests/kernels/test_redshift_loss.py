"""Losses over redshift bins: kernel and reference equal an oracle in float64; the operators differentiate."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels import redshift_loss_reference as reference
from tests.helpers.kernels.interpreter import (
    compiled,
    interpret,
    interpreted,
    on_cuda,
    passed_under_the_interpreter,
    thinned,
)
from tests.helpers.kernels.redshift_problems import KINDS, SHAPES, Bins, assert_close, oracle, problem

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels import redshift_loss as kernel
from hpcphotoz.kernels.checks import GRADIENTS

interpret(kernel)
pytestmark = pytest.mark.usefixtures("poison")
Shape = tuple[int, int]
Kind = tuple[str, float]
CRPS, SHIFT = ("crps", 0.0), ("shift", 0.0)


def named(kind: Kind, bins: Bins) -> dict[str, Any]:
    return {"kind": kind[0], "z_min": bins.z_min, "width": bins.width, "label_width": kind[1]}


@interpreted
@pytest.mark.parametrize(
    ("shape", "kind", "dtype"),
    thinned(list(product(SHAPES, KINDS, GRADIENTS)), lambda k: k % 3 == k // 3 % 3),
)
def test_kernel_equals_the_oracle(shape: Shape, kind: Kind, dtype: torch.dtype) -> None:
    logits, z, weight, bins = problem(shape, dtype)
    for weights in (None, weight, weight[:1].expand(len(weight))):
        found = kernel.launch(logits, z, weights, **named(kind, bins))
        wanted = oracle(logits, z, weights, kind, bins)
        assert found[1].dtype == dtype
        assert_close(found, wanted, kind, bins, weights)
    alone, same = kernel.launch(logits, z, None, **named(kind, bins), gradient=False)
    assert same is logits and torch.equal(alone, found[0])


@interpreted
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_equals_the_oracle_at_extreme_logits(kind: Kind) -> None:
    logits, z, weight, bins = extremes()
    found = kernel.launch(logits, z, weight, **named(kind, bins))
    assert_close(found, oracle(logits, z, weight, kind, bins), kind, bins, weight)


@interpreted
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_tells_numbers_that_are_not_finite_and_keeps_them_apart(kind: Kind) -> None:
    logits, z, _, bins = problem((6, 180))
    clean, _ = kernel.launch(logits, z, None, **named(kind, bins))
    for value in (torch.nan, torch.inf):
        logits[2, 77] = value
        loss, grad = kernel.launch(logits, z, None, **named(kind, bins))
        assert loss.isfinite().tolist() == [True, True, False, True, True, True]
        assert grad.isfinite().all(1).tolist() == [True, True, False, True, True, True]
        assert torch.equal(loss[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


@interpreted
def test_kernel_reads_redshifts_of_float64() -> None:
    logits, z, weight, bins = problem((9, 180))
    for kind in KINDS:
        options = named(kind, bins)
        wanted = oracle(logits, z.double(), weight, kind, bins)
        assert_close(kernel.launch(logits, z.double(), weight, **options), wanted, kind, bins, weight)


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernel_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "test_kernel", slow=slow) >= 40


def extremes() -> tuple[Tensor, Tensor, Tensor, Bins]:
    """Logits of +-1e4: one bin, some, or all but one have all of the probability, or all have the same."""
    logits, z, weight, bins = problem((5, 180))
    logits[0], logits[0, 7] = -1e4, 1e4
    logits[1] = torch.where(logits[1] > 0, 1e4, -1e4)
    logits[2], logits[2, 9] = 1e4, -1e4
    logits[3] = -1e4
    logits[4] = 1e4
    return logits, z, weight, bins


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_equals_the_oracle(shape: Shape, kind: Kind) -> None:
    for dtype in GRADIENTS:
        logits, z, weight, bins = problem(shape, dtype)
        options = named(kind, bins)
        wanted = oracle(logits, z, weight, kind, bins)
        # The running sum of 1500 numbers loses more: it is taken one by one here.
        units = max(1.0, shape[1] / 256)
        found = reference.redshift_loss_and_gradient(logits, z, weight, **options)
        assert_close(found, wanted, kind, bins, weight, units)
        logits.requires_grad_()
        loss = reference.redshift_loss(logits, z, **options)
        (grad,) = torch.autograd.grad(loss, logits, weight)
        assert_close((loss.detach(), grad), wanted, kind, bins, weight, units)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_equals_the_oracle_at_extreme_logits(kind: Kind) -> None:
    logits, z, weight, bins = extremes()
    found = reference.redshift_loss_and_gradient(logits, z, weight, **named(kind, bins))
    assert_close(found, oracle(logits, z, weight, kind, bins), kind, bins, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_added_to_all_logits_changes_nothing(kind: Kind) -> None:
    logits, z, _, bins = problem((9, 180))
    logits = logits.round(decimals=1)
    found = reference.redshift_loss_and_gradient(logits + 64, z, None, **named(kind, bins))
    assert_close(found, oracle(logits, z, None, kind, bins), kind, bins, units=4)
    assert (found[1].sum(1).abs() <= 2.0**-18).all(), "so that the gradient has no component along it"


@pytest.mark.parametrize("kind", KINDS)
def test_operators_pass_opcheck(kind: Kind) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs
    for dtype in (torch.float32, torch.bfloat16):
        logits, z, weight, bins = problem((9, 180), dtype)
        options = named(kind, bins)
        torch.library.opcheck(kernel.redshift_loss, (logits.requires_grad_(), z), options)
        torch.library.opcheck(kernel.redshift_loss_and_gradient, (logits.detach(), z, weight), options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_differentiates_as_autograd_does(kind: Kind) -> None:
    logits, z, weight, bins = problem((9, 180))
    options = named(kind, bins)
    logits.requires_grad_()
    loss = kernel.redshift_loss(logits, z, **options)
    (grad,) = torch.autograd.grad(loss, logits, weight)
    assert_close((loss.detach(), grad), oracle(logits, z, weight, kind, bins), kind, bins, weight)


def test_the_operator_in_one_graph_twice_and_backward_twice() -> None:
    logits, z, weight, bins = problem((9, 180))
    crps, shift = named(CRPS, bins), named(SHIFT, bins)
    logits.requires_grad_()
    both = kernel.redshift_loss(logits, z, **crps) + 3 * kernel.redshift_loss(logits, z, **shift)
    (first,) = torch.autograd.grad(both, logits, weight, retain_graph=True)
    (again,) = torch.autograd.grad(both, logits, weight)
    assert torch.equal(first, again)
    parts = [oracle(logits, z, weight, kind, bins)[1] for kind in (CRPS, SHIFT)]
    torch.testing.assert_close(first.double(), parts[0] + 3 * parts[1], rtol=0, atol=1e-6)


def test_a_second_derivative_is_refused() -> None:
    logits, z, _, bins = problem((9, 180))
    logits.requires_grad_()
    loss = kernel.redshift_loss(logits, z, **named(CRPS, bins)).sum()
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="redshift_loss_and_gradient"):
        torch.autograd.grad(grad.sum(), logits)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_operator_compiles_as_one_graph_with_its_gradient(backend: str) -> None:
    logits, z, weight, bins = problem((9, 180))

    def losses(x: Tensor) -> Tensor:
        found = [kernel.redshift_loss(2 * x, z, **named(kind, bins)) for kind in KINDS]
        return torch.stack(found).sum(0)

    plain, fast = (logits.clone().requires_grad_() for _ in range(2))
    wanted, found = losses(plain), torch.compile(losses, fullgraph=True, backend=backend)(fast)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(found, fast, weight), torch.autograd.grad(wanted, plain, weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@compiled
@pytest.mark.parametrize("tracing_mode", ["fake", "symbolic"])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_launch_can_be_traced(gradient: bool, tracing_mode: Any) -> None:
    # As torch.compile sees it on a GPU, with a batch of any size too.
    logits, z, weight, bins = problem((9, 180))

    def launch(logits: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return kernel.launch(logits, z, weight, "crps", bins.z_min, bins.width, gradient=gradient)

    graph = make_fx(launch, tracing_mode=tracing_mode)(logits, z, weight)
    assert "triton_kernel_wrapper" in graph.code


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"logits": torch.zeros(180)}, r"logits \(180,\)"),
        ({"logits": torch.zeros(180, 9).T}, "want contiguous"),
        ({"logits": torch.zeros(9, 180).double()}, "float64"),
        ({"z": torch.zeros(8)}, r"z \(8,\): want \(N,\) = \(9,\)"),
        ({"z": torch.zeros(9, dtype=torch.int64)}, "z torch.int64"),
        ({"z": torch.zeros(9, device="meta")}, "z is on meta"),
        ({"z": None}, "no z: the kind 'crps' needs redshifts"),
        ({"kind": "rms"}, "kind 'rms'.*cross_entropy"),
        ({"width": 0.0}, "positive width"),
    ],
)
def test_the_operator_refuses_what_it_would_get_wrong(given: dict[str, Any], said: str) -> None:
    logits, z, _, bins = problem((9, 180))
    with pytest.raises(ValueError, match=said):
        kernel.redshift_loss(**{"logits": logits, "z": z, **named(CRPS, bins), **given})


@on_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_operators_on_cuda_equal_the_oracle(shape: Shape, kind: Kind) -> None:
    for dtype in GRADIENTS:
        logits, z, weight, bins = problem(shape, dtype, device="cuda")
        options = named(kind, bins)
        wanted = oracle(logits, z, weight, kind, bins)
        # exp and log of a GPU are right to two units more, of numbers up to 20 here.
        found = kernel.redshift_loss_and_gradient(logits, z, weight, **options)
        assert_close(found, wanted, kind, bins, weight, units=4)
        logits.requires_grad_()
        loss = kernel.redshift_loss(logits, z, **options)
        (grad,) = torch.autograd.grad(loss, logits, weight)
        assert torch.equal(loss, found[0]) and torch.equal(grad, found[1])


@on_cuda
def test_a_cuda_graph_gives_the_same_at_each_replay() -> None:
    logits, z, weight, bins = problem((64, 180), device="cuda")
    options = named(CRPS, bins)

    def once() -> tuple[Tensor, Tensor]:
        x = logits.detach().requires_grad_()
        loss = kernel.redshift_loss(x, z, **options)
        return loss.detach(), torch.autograd.grad(loss, x, weight)[0]

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        once()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = once()
    for _ in range(2):
        logits.neg_()
        z.mul_(0.5)
        graph.replay()
        wanted = once()
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
