"""Losses of redshifts far outside the bins, infinite ones and NaN: kernel and reference equal the oracle."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hpcphotoz.kernels import redshift_loss_reference as reference
from tests.helpers.kernels.interpreter import compiled, interpret, interpreted, passed_under_the_interpreter
from tests.helpers.kernels.redshift_problems import KINDS, UNIT, Bins, assert_close, oracle, problem

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels import redshift_loss as kernel

interpret(kernel)
pytestmark = pytest.mark.usefixtures("poison")
Kind = tuple[str, float]
WITH_Z = [kind for kind in KINDS if kind[0] != "mean"] + [("cross_entropy", 0.3)]
OUTSIDE = [torch.inf, -torch.inf, 3e38, -3e38, 1e20, -1e20, 1e10, -1e10, 50.0, -50.0]
BINS = [7, 180]
Run = Callable[..., tuple[Tensor, Tensor]]
by_kind = pytest.mark.parametrize(("kind", "bins"), list(product(WITH_Z, BINS)))


def named(kind: Kind, bins: Bins) -> dict[str, Any]:
    return {"kind": kind[0], "z_min": bins.z_min, "width": bins.width, "label_width": kind[1]}


def assert_as_the_oracle(run: Run, kind: Kind, n: int) -> None:
    """Asserts losses and gradients of `OUTSIDE`, of both types of redshifts."""
    logits, _, weight, bins = problem((len(OUTSIDE), n))
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor(OUTSIDE, dtype=dtype)
        found, wanted = run(logits, z, weight, **named(kind, bins)), oracle(logits, z, weight, kind, bins)
        if kind[0] == "shift":  # a distance, rounded and infinite as z is
            assert ((found[0] == wanted[0]) | ((found[0] - wanted[0]).abs() <= 4 * UNIT * wanted[0])).all()
            found, wanted = (torch.zeros(len(z)), found[1]), (torch.zeros_like(wanted[0]), wanted[1])
        assert found[0].isfinite().all() and found[1].isfinite().all()
        assert_close(found, wanted, kind, bins, weight)


def assert_nan_alone(run: Run, kind: Kind, n: int) -> None:
    """Asserts that a redshift of NaN makes its object NaN, and changes no bit of the others."""
    logits, clean, weight, bins = problem((9, n))
    for dtype, weights in product((torch.float32, torch.float64), (None, weight)):
        z = clean.to(dtype).clone()
        wanted = run(logits, z, weights, **named(kind, bins))
        z[4] = torch.nan
        for found, other in zip(run(logits, z, weights, **named(kind, bins)), wanted, strict=True):
            assert found[4].isnan().all() and other.isfinite().all()
            assert torch.equal(found[[0, 1, 2, 3, 5, 6, 7, 8]], other[[0, 1, 2, 3, 5, 6, 7, 8]])


@interpreted
@by_kind
def test_kernel_takes_the_nearest_bin(kind: Kind, bins: int) -> None:
    assert_as_the_oracle(kernel.launch, kind, bins)


@by_kind
def test_the_reference_takes_the_nearest_bin(kind: Kind, bins: int) -> None:
    assert_as_the_oracle(reference.redshift_loss_and_gradient, kind, bins)


@interpreted
@by_kind
def test_kernel_is_nan_where_a_redshift_is(kind: Kind, bins: int) -> None:
    assert_nan_alone(kernel.launch, kind, bins)


@by_kind
def test_the_reference_is_nan_where_a_redshift_is(kind: Kind, bins: int) -> None:
    assert_nan_alone(reference.redshift_loss_and_gradient, kind, bins)


@by_kind
def test_autograd_of_the_reference_agrees(kind: Kind, bins: int) -> None:
    logits, _, weight, space = problem((len(OUTSIDE) + 1, bins))
    z, options = torch.tensor([*OUTSIDE, torch.nan]), named(kind, space)
    wanted = reference.redshift_loss_and_gradient(logits, z, weight, **options)
    logits.requires_grad_()
    loss = reference.redshift_loss(logits, z, **options)
    (grad,) = torch.autograd.grad(loss, logits, weight)
    torch.testing.assert_close((loss.detach(), grad), wanted, rtol=1e-5, atol=1e-6, equal_nan=True)


@interpreted
@pytest.mark.parametrize("label_width", [0.3, 2.5, 20.0])
def test_kernel_and_reference_agree_on_both_sides_of_where_a_label_is_one_bin(label_width: float) -> None:
    logits, _, _, bins = problem((200, 7))
    far = reference.FAR * bins.width * (1 + label_width**2)
    z = torch.cat([torch.linspace(-2 * far, 0, 100), torch.linspace(0, 2 * far, 100)])
    kind = ("cross_entropy", label_width)
    wanted = oracle(logits, z, None, kind, bins)
    for run in (kernel.launch, reference.redshift_loss_and_gradient):
        found = run(logits, z, None, **named(kind, bins))
        # The squares of distances of d label widths are rounded by d^2 units, and differ by d / label_width.
        torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-4, atol=0.01)
        torch.testing.assert_close(found[1].double(), wanted[1], rtol=0, atol=0.01)


def test_the_number_of_the_nearest_bin() -> None:
    z = torch.tensor([*OUTSIDE, torch.nan, 0.02, 0.4199])
    for given in (z, z.double()):
        found = reference.bin_index(given, 180, 0.02, 0.4 / 180)
        assert found.dtype == torch.int64 and found.tolist() == [179, 0] * (len(OUTSIDE) // 2) + [0, 0, 179]


@pytest.mark.parametrize("label_width", [-2.5, -1e-9, float("nan")])
@pytest.mark.parametrize(("kind", "module"), list(product(reference.KINDS, (kernel, reference))))
def test_a_negative_label_width_is_refused(kind: str, module: Any, label_width: float) -> None:
    logits, z, weight, bins = problem((9, 7))
    options = named((kind, label_width), bins)
    with pytest.raises(ValueError, match=f"label_width {label_width}: want 0 or a positive number"):
        module.redshift_loss(logits, z, **options)
    with pytest.raises(ValueError, match=f"label_width {label_width}: want 0 or a positive number"):
        module.redshift_loss_and_gradient(logits, z, weight, **options)


@compiled
def test_a_negative_label_width_is_refused_before_a_launch_on_cuda() -> None:
    with FakeTensorMode():
        logits, z = torch.zeros(9, 7, device="cuda"), torch.zeros(9, device="cuda")
        with pytest.raises(ValueError, match="label_width -1.0: want 0 or a positive number"):
            kernel.redshift_loss(logits, z, "crps", 0.0, 0.1, -1.0)


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
def test_kernel_under_the_interpreter() -> None:
    assert passed_under_the_interpreter(__file__, "test_kernel", slow=False) >= 20
