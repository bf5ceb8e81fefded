"""One optimisation step: forward and backward passes over clean and attacked objects, one update."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.objectives import ForwardBatch, Losses, TrainingObjective
from hpcphotoz.training.optimisation.guarded_update import GuardedUpdate, loss_scale
from hpcphotoz.training.overlap.streams import AdversarySource
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers


class StepOutcome(NamedTuple):
    """What a step gives, on the device: its losses on this rank, and the norms of the averaged gradients."""

    losses: Losses
    norms: Tensor  # (updates,) float32: where one is not finite, the update was left out on all ranks


@dataclass
class Step:
    """Takes one optimisation step per call.

    Gradients are those of the mean over the *global* batch. Slices of different length, empty ones too,
    therefore add up to the gradient that one rank would compute. Ranks average once, in the last pass. A step
    whose loss or gradient is not finite on any rank updates nothing on all of them: see `GuardedUpdate`.
    """

    model: nn.Module  # the network, in DistributedDataParallel if several ranks train
    optimiser: torch.optim.Optimizer
    adversaries: AdversarySource
    objective: TrainingObjective
    compute: ComputeOptions  # precision and size of micro-batches
    learners: int = 1  # number of ranks that train
    timers: Timers = field(default_factory=Timers)

    def __post_init__(self) -> None:
        self.guard = GuardedUpdate(
            self.model, self.optimiser, self.objective.config.optimiser.clip_norm
        )  # for `GraphedStep` too

    def __call__(self, batch: RankBatch) -> StepOutcome:
        """Attack, forward, backward, update."""
        self.guard.begin()
        losses = self.gradients(batch)
        with self.timers("optimiser"):
            norm = self.guard.update()
        return StepOutcome(losses, norm[None])

    def gradients(self, batch: RankBatch) -> Losses:
        """Attack, forward, backward; returns the losses of this rank."""
        self.optimiser.zero_grad()
        adversaries, objective = self.adversaries, self.objective
        # DistributedDataParallel divides gradients by the number of ranks. Undo this, and divide by the
        # number of objects instead.
        scale = self.learners / objective.objects(batch.size)
        adversaries.begin(batch)
        losses: list[Losses] = []
        if adversaries.overlaps:
            with self.timers("clean"):
                clean = objective.clean(batch)
                if len(clean):
                    losses.append(self._pass(clean, scale, last=False))
            forward_batches = [objective.attacked(batch, adversaries.finish(batch))]
        else:
            forward_batches = objective.together(batch, adversaries.finish(batch))
        together = "clean and adversarial" if len(batch.attacked) else "clean"
        with self.timers("adversarial" if adversaries.overlaps else together):
            for number, forward_batch in enumerate(forward_batches):
                ends = number == len(forward_batches) - 1
                losses.append(self._pass(forward_batch, scale, last=ends))
        adversaries.done()
        return Losses.together(losses)

    def _pass(self, forward_batch: ForwardBatch, scale: float, last: bool) -> Losses:
        """Forward and backward; the last micro-batch of the `last` pass averages gradients over ranks."""
        found: list[Losses] = []
        micro_batches = list(forward_batch.split(self.compute.micro_batch))
        for number, micro_batch in enumerate(micro_batches):
            average = last and number == len(micro_batches) - 1
            alone = isinstance(self.model, DistributedDataParallel) and not average
            with self.model.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with self.compute.autocast(micro_batch.images.device):
                    logits = self.model(*self.objective.inputs(micro_batch))
                loss, losses = self.objective.loss(logits, micro_batch)
                loss.backward(loss_scale(loss, losses.sums, scale))  # type: ignore[no-untyped-call]
            found.append(losses)
        return Losses.together(found)
