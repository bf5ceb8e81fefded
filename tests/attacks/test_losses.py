"""The losses that attacks raise have the values of their definitions, and useful gradients."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpcphotoz.attacks import losses
from hpcphotoz.evaluation import metrics
from hpcphotoz.models.bins import RedshiftBins
from tests.helpers.networks import BINS


def some(n: int = 64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return 3 * torch.randn(n, BINS.n, generator=g), 0.399 * torch.rand(n, generator=g)


def test_crps_is_that_of_the_evaluation() -> None:
    logits, z = some()
    edges = np.linspace(BINS.z_min, BINS.z_max, BINS.n + 1)
    pdf = torch.softmax(logits.double(), 1).numpy()
    # Float32 against float64, on figures of 0.01 to 0.2.
    np.testing.assert_allclose(losses.crps(BINS)(logits, z), metrics.crps(pdf, edges, z.numpy()), atol=2e-7)


def test_margin_is_positive_where_another_bin_wins_and_does_not_feel_the_scale() -> None:
    logits, z = some()
    margin = losses.margin(BINS)(logits, z)
    assert torch.equal(margin > 0, logits.argmax(1) != BINS.index(z))
    assert (margin > 0).any() and (margin < 0).any()
    torch.testing.assert_close(losses.margin(BINS)(7 * logits - 3, z), margin, rtol=1e-4, atol=1e-5)


def test_the_margin_of_probabilities_is_that_of_the_paper() -> None:
    logits, z = some()
    found = losses.probability_margin(BINS)(logits, z)
    for row, own in enumerate(BINS.index(z).tolist()):
        p = torch.softmax(logits[row].double(), 0).tolist()
        assert float(found[row]) == pytest.approx(max(p[:own] + p[own + 1 :]) - p[own], abs=1e-6)
    assert torch.equal(found > 0, losses.margin(BINS)(logits, z) > 0)


@pytest.mark.parametrize("name", losses.redshift_losses)
def test_every_loss_is_one_number_per_object_with_a_gradient(name: str) -> None:
    logits, z = some()
    logits.requires_grad_()
    loss = losses.redshift_losses[name](BINS)(logits, z)
    assert loss.shape == z.shape and loss.dtype == torch.float32
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    # The margin is 1 wherever the bin of z is the third of all: (l_1st - l_3rd) / (l_1st - l_3rd).
    climbs = (loss - 1).abs() > 1e-5 if "margin" in name else loss > 0
    assert climbs.sum() > 50 and grad.isfinite().all() and (grad[climbs].abs().sum(1) > 0).all()
    size = grad.norm(dim=1, keepdim=True).clamp(min=1e-12)
    raised = losses.redshift_losses[name](BINS)(logits + 0.01 * grad / size, z)
    assert (raised > loss)[climbs].all()


def test_the_margin_of_two_bins_has_a_gradient() -> None:
    two = RedshiftBins(2, 0.0, 0.4)
    logits = torch.tensor([[1.0, 3.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(losses.margin(two)(logits, torch.tensor([0.1])).sum(), logits)
    assert grad.tolist() == [[-1.0, 1.0]]


def test_a_target_negates_the_loss() -> None:
    logits, z = some()
    wanted = losses.moved_by(z, 0.1, BINS)
    inside = wanted < BINS.z_max - BINS.width
    torch.testing.assert_close(((wanted - z) / (1 + z))[inside], torch.full_like(z, 0.1)[inside])
    assert (losses.moved_by(z, 5.0, BINS) < BINS.z_max).all() and (losses.moved_by(z, -5, BINS) >= 0).all()
    assert torch.equal(losses.toward(losses.shift(BINS))(logits, wanted), -losses.shift(BINS)(logits, wanted))


def test_outliers_and_reached_targets_are_those_of_the_field() -> None:
    z = torch.tensor([0.1, 0.1])
    logits = torch.full((2, BINS.n), -100.0)
    logits[0, 7], logits[1, 8] = 100.0, 100.0  # <z> of 0.15 and 0.17: 0.045 and 0.064 in units of 1 + z
    assert losses.outlier(BINS)(logits, z).tolist() == [False, True]
    assert losses.reached(BINS, within=0.05)(logits, z).tolist() == [True, False]


def test_class_numbers_are_accepted_as_labels() -> None:
    logits, z = some()
    ours = losses.cross_entropy()(logits, BINS.index(z))
    assert torch.equal(ours, losses.cross_entropy(BINS)(logits, z))


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: loss(BINS) for name, loss in losses.redshift_losses.items()},
    "classes": lambda logits, z: losses.cross_entropy()(logits, BINS.index(z)),
    "higher": losses.higher(BINS),
    "lower": losses.lower(BINS),
    "toward": losses.toward(losses.shift(BINS)),
    "outlier": losses.outlier(BINS),
    "reached": losses.reached(BINS),
    "mean": lambda logits, z: BINS.mean(logits),
    "integral": lambda logits, z: BINS.integral(torch.softmax(logits.float(), 1)),
}


class Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the types of all floating-point results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        self.seen |= {t.dtype for t in tree_leaves(found) if isinstance(t, Tensor) and t.is_floating_point()}
        return found


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_number_over_the_bins(name: str, dtype: torch.dtype) -> None:
    """Attacks run under autocast: bfloat16 would round <z> to 0.001 to 0.002, more than a survey's bias."""
    logits, z = some()
    logits = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), Types() as types:
        found = REDUCTIONS[name](logits, z)
        grad = torch.autograd.grad(found.sum(), logits)[0] if found.is_floating_point() else None
    assert torch.bfloat16 not in types.seen or dtype == torch.bfloat16
    plain = REDUCTIONS[name](logits.float(), z)
    assert found.dtype in (torch.float32, torch.bool) and torch.equal(found, plain)
    if grad is not None:
        (wanted,) = torch.autograd.grad(plain.sum(), logits)
        assert torch.equal(grad, wanted)
