"""Training steps built by the trainer's own parts, on one batch that stays in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.training.galaxies import SKY, STAMP, galaxies
from hpcphotoz.compute.precision import tf32
from hpcphotoz.config import Config
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.training import step as training_step
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.exact.deterministic import deterministic
from hpcphotoz.training.optimisation.guarded_update import GuardedUpdate
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.world import World

LEARNING_RATE = 1e-5  # small, as all steps of a benchmark see the same objects


def assembled(
    config: Config, size: int, device: torch.device
) -> tuple[Callable[[], object], TrainingComponents, RankBatch]:
    """One training step of a run on one rank, the components that it is built from, and its batch.

    Args:
        config: of the run.
        size: objects a step.
        device: where.
    """
    components = TrainingComponents.create(config, STAMP, SKY, device, Timers(device))
    for entry in components.optimiser.param_groups:
        entry["lr"] = LEARNING_RATE
    images, ebv, z = (t.to(device) for t in galaxies(size, seed=1))
    number, sky = torch.arange(size), torch.tensor(SKY, device=device).expand(size, -1)
    rank_batch = make_rank_batch(Batch(images, z, ebv, number, sky, number, size, 0), config, epoch=0, step=0)
    train_step = components.build_step(components.adversaries(), RankRole(World()))

    def step() -> None:
        with deterministic(config.compute.deterministic), tf32(components.compute.tf32):
            components.begin_step(0, RankRole(World()))
            outcome = train_step(rank_batch)
            components.end_step(0, RankRole(World()), outcome.norms)

    return step, components, rank_batch


class _Unguarded(GuardedUpdate):
    """The update of the optimiser alone, whatever the gradients are."""

    def begin(self) -> None:
        """Do nothing: buffers are not copied."""

    def update(self) -> Tensor:
        """Update; returns a norm that nobody has computed."""
        self._optimiser.step()
        return self._one

    @cached_property
    def _one(self) -> Tensor:
        return torch.ones((), device=self._parameters[0].device)


@contextmanager
def unguarded() -> Iterator[None]:
    """A block in which steps are built that leave no update out, to measure what that costs."""
    training_step.GuardedUpdate = _Unguarded  # type: ignore[attr-defined]
    try:
        yield
    finally:
        training_step.GuardedUpdate = GuardedUpdate  # type: ignore[attr-defined]
