"""A step leaves no gradient of the attack behind, and writes no host number by index."""

from collections.abc import Callable

import pytest
import torch

from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.overlap.streams import SerialOverlap
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.step import StepOutcome
from hpcphotoz.training.step_free import FreeStep
from tests.helpers.networks import ConvNetwork
from tests.helpers.training.steps import BINS, CPU, Recorded, batch, configured, gradients, stepper


def test_an_attack_leaves_nothing_behind_between_clean_and_adversarial_passes() -> None:
    """Gradients of the clean pass are kept while the attack freezes the parameters."""
    module = ConvNetwork()
    take, _ = stepper(configured(), module, SerialOverlap)
    take(make_rank_batch(batch(), configured(), 0, 0))
    twice = gradients(module)
    take(make_rank_batch(batch(), configured(), 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(twice, gradients(module), strict=True))
    assert all(p.requires_grad for p in module.parameters()) and module.training


@pytest.mark.parametrize("objective", ["replace", "append", "consistency", "free"])
def test_no_step_writes_a_number_of_the_host_by_index(objective: str) -> None:
    """`tensor[index] = number` copies from the host on a GPU, and cannot be captured."""
    config, module = configured(objective), ConvNetwork()
    take: Callable[[RankBatch], StepOutcome] = stepper(config, module)[0]
    if objective == "free":
        optimiser = torch.optim.SGD(module.parameters(), lr=0.0)
        take = FreeStep(module, optimiser, config, BINS, compute_options(config.compute, CPU))
    with Recorded("index_put") as copies:
        take(make_rank_batch(batch(), config, 0, 0))
    assert not copies.found
