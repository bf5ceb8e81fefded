"""A step leaves no gradient of the attack behind, and writes no host number by index."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.overlap.streams import SerialOverlap
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.step import StepOutcome
from hpcphotoz.training.step_free import FreeStep
from tests.helpers.networks import ConvNetwork
from tests.helpers.training.steps import BINS, CPU, batch, configured, gradients, stepper


def test_an_attack_leaves_nothing_behind_between_clean_and_adversarial_passes() -> None:
    """Gradients of the clean pass are kept while the attack freezes the parameters."""
    module = ConvNetwork()
    take, _ = stepper(configured(), module, SerialOverlap)
    take(make_rank_batch(batch(), configured(), 0, 0))
    twice = gradients(module)
    take(make_rank_batch(batch(), configured(), 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(twice, gradients(module), strict=True))
    assert all(p.requires_grad for p in module.parameters()) and module.training


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records `tensor[index] = number`, which copies from the host on a GPU and cannot be captured."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "index_put" in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", ["replace", "append", "consistency", "free"])
def test_no_step_writes_a_number_of_the_host_by_index(objective: str) -> None:
    config, module = configured(objective), ConvNetwork()
    take: Callable[[RankBatch], StepOutcome] = stepper(config, module)[0]
    if objective == "free":
        optimiser = torch.optim.SGD(module.parameters(), lr=0.0)
        take = FreeStep(module, optimiser, config, BINS, compute_options(config.compute, CPU))
    with Copies() as copies:
        take(make_rank_batch(batch(), config, 0, 0))
    assert not copies.found
