"""Two steps of one rank: real data, network and parts of the training loop, with fake collectives."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.training.components import TrainingComponents, TrainStep
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.distributed.agreement import AgreedStep, Agreement
from hpcphotoz.training.overlap.connect import connect
from hpcphotoz.training.overlap.exchange import AttackerEndpoint, LearnerEndpoint
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.rehearsal.fake_group import (
    RehearsedAttacker,
    RehearsedLearner,
    average_without_waiting,
)
from hpcphotoz.training.run.metrics import MetricsAccumulator
from hpcphotoz.training.run.signals import StopRequest
from hpcphotoz.world import World

STEPS = 2


@dataclass
class RehearsedSteps:
    """What the steps of one rank gave."""

    role: RankRole
    # Of each step, reading included; of a learner without the attack, which it makes in an attacker's place.
    seconds: list[float] = field(default_factory=list)
    waited_s: float = 0.0  # for data
    batches: list[tuple[int, int]] = field(default_factory=list)  # objects, and attacked ones, of each step
    # Of each step of a learner, on this rank alone: (5,) sums as in `AgreedStep`, and norm of the gradients.
    outcomes: list[AgreedStep] = field(default_factory=list)
    object_ids: list[list[int]] = field(default_factory=list)  # of each step
    problem: str = ""  # why the data could not be read; "": they could


def take_steps(
    components: TrainingComponents,
    loader: RankLoader,
    world: World,
    steps: range,
    total_steps: int,
    schedule_steps: int,
) -> RehearsedSteps:
    """Take steps as one rank of a fake process group.

    Args:
        components: of the run, restored.
        loader: of this rank's slices of the global batches, counted.
        world: this rank and all others.
        steps: at least one.
        total_steps, schedule_steps: as of `TrainingLoop`.

    Raises:
        BadInput: as `connect`.
    """
    metrics = MetricsAccumulator(components.timers)
    kinds = RehearsedLearner, RehearsedAttacker
    connection = connect(components, loader, world, steps, total_steps, metrics.waiting, *kinds)
    found, exchange = RehearsedSteps(connection.role), connection.endpoint
    with closing(
        _timed(connection.loader.rank_batches(steps.start, steps.stop), found, components)
    ) as batches:
        if isinstance(exchange, AttackerEndpoint):
            exchange.run(batches, components.step_attack(), StopRequest())
        else:
            _learn(components, exchange, batches, schedule_steps, found)
    found.waited_s = connection.loader.waited_s
    return found


def _learn(
    components: TrainingComponents,
    exchange: LearnerEndpoint | None,
    batches: Iterator[RankBatch],
    schedule_steps: int,
    found: RehearsedSteps,
) -> None:
    role = found.role
    if isinstance(exchange, RehearsedLearner):
        exchange.generate = components.step_attack()
    train_step = components.build_step(exchange or components.adversaries(), role)
    _give_hook(train_step, components, role)

    def take_down(outcome: AgreedStep) -> bool:
        found.outcomes.append(outcome)
        return True

    agreement = Agreement(role.world, role.subgroup, take_down, lags=False)
    for batch in batches:
        outcome = components.take_step(train_step, batch, role, schedule_steps)
        flags = exchange.flags if exchange else None
        verdict = agreement.after(outcome, batch, False, batch.problem is not None, flags, now=True)
        if exchange:
            exchange.publish(batch.step + 1, verdict)
    if isinstance(exchange, RehearsedLearner):
        both = zip(found.seconds, exchange.attack_s, strict=True)
        found.seconds = [whole - attack for whole, attack in both]


def _give_hook(train_step: TrainStep, components: TrainingComponents, role: RankRole) -> None:
    model = getattr(train_step, "model", None)
    if isinstance(model, DistributedDataParallel) and not components.config.compute.deterministic:
        average_without_waiting(model, role.world.size, role.subgroup)


def _timed(
    batches: Iterator[RankBatch], found: RehearsedSteps, components: TrainingComponents
) -> Generator[RankBatch, None, None]:
    """The same batches; takes down each, and the time until the next is asked for."""
    device = components.device
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        found.batches.append((len(batch.images), len(batch.attacked)))
        found.object_ids.append(batch.catalogue_id.tolist())
        found.problem = batch.problem or found.problem
        yield batch
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.seconds.append(time.perf_counter() - start)
