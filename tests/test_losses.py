"""What attacks raise: the losses are what their names say, and have gradients to climb."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcphotoz.attacks import losses
from hpcphotoz.evaluation import metrics
from hpcphotoz.models.bins import RedshiftBins
from tests.attacked import BINS


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


@pytest.mark.parametrize("name", losses.redshift_losses)
def test_every_loss_is_one_number_an_object_with_a_gradient(name: str) -> None:
    logits, z = some()
    logits.requires_grad_()
    loss = losses.redshift_losses[name](BINS)(logits, z)
    assert loss.shape == z.shape and loss.dtype == torch.float32
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    # The margin is 1 wherever the bin of z is the third of all: (l_1st - l_3rd) / (l_1st - l_3rd).
    climbs = (loss - 1).abs() > 1e-5 if name == "margin" else loss > 0
    assert climbs.sum() > 50 and grad.isfinite().all() and (grad[climbs].abs().sum(1) > 0).all()
    size = grad.norm(dim=1, keepdim=True).clamp(min=1e-12)
    raised = losses.redshift_losses[name](BINS)(logits + 0.01 * grad / size, z)
    assert (raised > loss)[climbs].all()


def test_two_bins_have_a_margin_to_climb() -> None:
    two = RedshiftBins(2, 0.0, 0.4)
    logits = torch.tensor([[1.0, 3.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(losses.margin(two)(logits, torch.tensor([0.1])).sum(), logits)
    assert grad.tolist() == [[-1.0, 1.0]]


def test_a_target_turns_the_loss_round() -> None:
    logits, z = some()
    wanted = losses.moved_by(z, 0.1, BINS)
    inside = wanted < BINS.z_max - BINS.width
    torch.testing.assert_close(((wanted - z) / (1 + z))[inside], torch.full_like(z, 0.1)[inside])
    assert (losses.moved_by(z, 5.0, BINS) < BINS.z_max).all() and (losses.moved_by(z, -5, BINS) >= 0).all()
    assert torch.equal(losses.toward(losses.shift(BINS))(logits, wanted), -losses.shift(BINS)(logits, wanted))


def test_ends_are_those_of_the_field() -> None:
    z = torch.tensor([0.1, 0.1])
    logits = torch.full((2, BINS.n), -100.0)
    logits[0, 7], logits[1, 8] = 100.0, 100.0  # <z> of 0.15 and 0.17: 0.045 and 0.064 in units of 1 + z
    assert losses.outlier(BINS)(logits, z).tolist() == [False, True]
    assert losses.reached(BINS, within=0.05)(logits, z).tolist() == [True, False]


def test_class_numbers_are_labels_too() -> None:
    logits, z = some()
    ours = losses.cross_entropy()(logits, BINS.index(z))
    assert torch.equal(ours, losses.cross_entropy(BINS)(logits, z))
