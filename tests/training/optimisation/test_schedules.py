"""Learning rates, and the curve on which an extended run goes on."""

import pytest
import torch

from hpcphotoz.config import Optimiser
from hpcphotoz.training.optimisation.optimiser import make_optimiser
from hpcphotoz.training.optimisation.schedules import learning_rate, schedule_epochs


@pytest.mark.parametrize("total", [2, 3, 4, 10, 97, 1000])
def test_one_cycle_is_that_of_torch(total: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, 3e-3, total, cycle_momentum=False)
    options, rates = Optimiser(schedule="one_cycle", learning_rate=3e-3), []
    for step in range(total):
        rates.append(learning_rate(step, total, options))
        assert rates[-1] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9), step
        theirs.step()
        if step < total - 1:
            cycle.step()
    assert rates[-1] == pytest.approx(3e-3 / 250_000)


def test_halfway_divides_by_five_at_half_of_the_steps() -> None:
    options = Optimiser(schedule="halfway", learning_rate=1.0, warmup_steps=0)
    assert [learning_rate(step, 5, options) for step in range(5)] == [1.0, 1.0, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("schedule", ["cosine", "constant", "halfway"])
def test_the_warm_up_is_linear_and_is_multiplied_with_the_schedule(schedule: str) -> None:
    with_it, without = (
        Optimiser(schedule=schedule, learning_rate=2.0, warmup_steps=steps) for steps in (3, 0)
    )
    ratios = [learning_rate(step, 20, with_it) / learning_rate(step, 20, without) for step in range(6)]
    assert ratios == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_an_extended_schedule_is_that_of_the_new_length_but_a_fallen_rate_does_not_rise() -> None:
    # (schedule, laid over, epochs, begun, step, batches)
    assert schedule_epochs("cosine", 4, 4, 4, 20, 5) == 4
    assert schedule_epochs("cosine", 4, 9, 4, 20, 5) == 9
    assert schedule_epochs("halfway", 4, 9, 4, 10, 5) == 9, "its next step is the first that would be lower"
    assert schedule_epochs("halfway", 4, 9, 4, 11, 5) == 4
    assert schedule_epochs("halfway", 4, 12, 9, 45, 5) == 4, "extended once more"


@pytest.mark.parametrize("algorithm", ["adamw", "adam", "sgd"])
def test_updates_are_those_of_the_algorithm(algorithm: str) -> None:
    """Two steps on one parameter with gradients 1 and -0.5, by the formulas."""
    options = Optimiser(algorithm=algorithm, learning_rate=0.1, weight_decay=0.2)
    parameter = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimiser = make_optimiser(options, [parameter], fused=True)
    x, m, v, buffer = 2.0, 0.0, 0.0, None
    for step, gradient in enumerate((1.0, -0.5), 1):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        if algorithm == "adamw":
            x *= 1 - 0.1 * 0.2
        else:
            gradient += 0.2 * x
        if algorithm == "sgd":  # Nesterov: the gradient plus the momentum of the next step
            buffer = gradient if buffer is None else 0.9 * buffer + gradient
            x -= 0.1 * (gradient + 0.9 * buffer)
        else:
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            x -= 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
        assert parameter.item() == pytest.approx(x, rel=1e-9)
