"""The plan of all ranks of a run: what each has to do, to read, to send and to hold."""

import math
from dataclasses import dataclass, replace

import numpy as np

from hpcphotoz.compute.statistics import running_statistics
from hpcphotoz.data.order import Int64Array
from hpcphotoz.data.stream.mixture import MixedStream
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.overlap.messages import WeightMessages
from hpcphotoz.training.overlap.topology import RankSplit
from hpcphotoz.training.rank_batch import RankBatch, image_shape
from hpcphotoz.training.rehearsal import memory
from hpcphotoz.training.rehearsal.batches import Division, OrderCheck, check_order, divide
from hpcphotoz.training.rehearsal.memory import RankMemory
from hpcphotoz.training.rehearsal.messages import MessagePlan, plan_messages
from hpcphotoz.training.rehearsal.ranks import RehearsedRanks
from hpcphotoz.training.rehearsal.reads import Reads, count_reads, number_of_blocks, window_rows
from hpcphotoz.training.run.profiler import operations, step_operations


@dataclass(frozen=True)
class RolePlan:
    """What the ranks of one role do in a step; all ranks have one role unless overlap.mode is ranks."""

    name: str  # "rank", "learner" or "attacker", as `RankRole.name`
    ranks: tuple[int, ...]
    division: Division  # of a whole global batch
    last: Division  # of the last global batch of an epoch
    reads: Reads
    memory: RankMemory  # of the rank with the most objects
    operations: Int64Array  # (ranks,) of a step of each

    @property
    def one(self) -> str:
        """One of the ranks, with its article."""
        return f"an {self.name}" if self.name == "attacker" else f"a {self.name}"


@dataclass(frozen=True)
class RunPlan:
    """The plan of all ranks."""

    roles: list[RolePlan]
    order: OrderCheck
    blocks: int  # of all datasets
    split: RankSplit | None  # None: every rank attacks and trains
    messages: MessagePlan | None
    weights_bytes: int  # of the message with which attackers get the weights


def busiest_batch(loader: RankLoader, ranks: RehearsedRanks, step: int) -> RankBatch:
    """The batch of a step of a rank with attacked objects, or with objects, if there is one."""
    size, config = loader.global_batch_size(step), loader.config
    division = divide(size, ranks.size, config.adversarial.fraction)
    rank = int(np.argmax(division.attacked * (size + 1) + division.objects))
    batches = loader.for_world(replace(ranks.world, rank=rank)).rank_batches(step, step + 1)
    return next(batches)


def plan_run(
    components: TrainingComponents,
    loader: RankLoader,
    ranks: RehearsedRanks,
    split: RankSplit | None,
    steps: range,
    total_steps: int,
) -> RunPlan:
    """Plan what all ranks do.

    Args:
        components: of the run, after the rehearsed steps, so that the optimiser has its state.
        loader: with counted objects, of any rank.
        ranks: all ranks.
        split: the roles; None: every rank attacks and trains.
        steps: from the first that is left, to the end of the run.
        total_steps: of the run; the attack has its full strength after them.
    """
    config, stream = components.config, loader.train
    header = stream.manifest.header
    fraction, size = config.adversarial.fraction, stream.batch_size(0)
    batch = replace(busiest_batch(loader, ranks, steps.start), step=total_steps)
    passed, attacked = operations(components.module, components.attack_eagerly, batch)
    per_object = memory.activation_bytes(components, batch)
    shape = image_shape(config.model, header)
    messages = plan_messages(split, size, fraction, config.overlap.images_transfer, shape) if split else None
    module = components.module
    weights = [*module.parameters(), *running_statistics(module)]
    weights_bytes = WeightMessages(weights, config.overlap.weights_transfer).empty().numel()

    def of_role(name: str, members: tuple[int, ...]) -> RolePlan:
        division = divide(size, len(members), fraction)
        attack = 0.0 if name == "learner" else attacked
        training = 0.0 if name == "attacker" else passed
        both = zip(division.objects.tolist(), division.attacked.tolist(), strict=True)
        work = [step_operations(config, objects, m, training, attack) for objects, m in both]
        return RolePlan(
            name,
            members,
            division,
            divide(stream.batch_size(stream.batches - 1), len(members), fraction),
            count_reads(stream, steps.start, steps.stop, len(members)),
            _memory(components, stream, name, division, per_object, steps.start, messages, weights_bytes),
            np.asarray(work, np.int64),
        )

    if split is None:
        roles = [of_role("rank", tuple(range(ranks.size)))]
    else:
        roles = [of_role("learner", split.learner_ranks), of_role("attacker", split.attacker_ranks)]
    order = check_order(stream, steps.start)
    return RunPlan(roles, order, number_of_blocks(stream), split, messages, weights_bytes)


def _memory(
    components: TrainingComponents,
    stream: Stream | MixedStream,
    name: str,
    division: Division,
    per_object: int,
    step: int,
    messages: MessagePlan | None,
    weights_bytes: int,
) -> RankMemory:
    config, header = components.config, stream.manifest.header
    image, taken = 4 * len(header.bands) * header.stamp**2, 4 * math.prod(image_shape(config.model, header))
    objects, attacked = int(division.objects.max()), int(division.attacked.max())
    free = config.adversarial.objective == "free"
    at_once = objects if free else components.compute.micro_batch or max(objects, 1)
    found = memory.network_bytes(components)
    if name == "attacker":
        found = {"network": found["network"]}
    found |= memory.batch_bytes(taken, objects, attacked if name != "learner" else 0, per_object, at_once)
    if messages:
        found["messages"] = messages.most(0 if name == "attacker" else 1)[1]
        found["weights' messages"] = 2 * weights_bytes  # of attackers and of rank 0
    windows = config.data.windows_ahead + 1
    rows = window_rows(stream, step, len(division.objects))
    host = {"windows of images": windows * rows * image}
    if components.device.type == "cpu":
        return RankMemory(found | host, {})
    return RankMemory(found, host)
