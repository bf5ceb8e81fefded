"""One optimisation step: forward and backward passes over clean and attacked objects, one update."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.config import Optimiser
from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.objectives import ForwardBatch, TrainingObjective
from hpcphotoz.training.overlap.streams import AdversarySource
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers


class Step:
    """Takes one optimisation step per call.

    Gradients are those of the mean over the *global* batch. Slices of different length, empty ones too,
    therefore add up to the gradient that one rank would compute. Ranks average once, in the last pass.

    Args:
        model: the network, in DistributedDataParallel if several ranks train.
        optimiser: the optimiser of its parameters.
        adversaries: source of the attacked images; says whether clean passes run meanwhile.
        objective: the training objective.
        compute: precision and size of micro-batches.
        learners: number of ranks that train.
        timers: times the sections of the step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        adversaries: AdversarySource,
        objective: TrainingObjective,
        compute: ComputeOptions,
        learners: int = 1,
        timers: Timers | None = None,
    ) -> None:
        self._model, self._optimiser, self._adversaries = model, optimiser, adversaries
        self._objective, self._compute, self._learners = objective, compute, learners
        self._timers = timers or Timers()

    def __call__(self, batch: RankBatch) -> Tensor:
        """Attack, forward, backward, update; returns the sums of `gradients`."""
        sums = self.gradients(batch)
        with self._timers("optimiser"):
            self._optimiser.step()
        return sums

    def gradients(self, batch: RankBatch) -> Tensor:
        """Attack, forward, backward.

        Returns:
            (4,) float64, of this rank: sum of the losses of clean objects, their number, sum of the losses of
            attacked objects, their number.
        """
        self._optimiser.zero_grad()
        adversaries, objective = self._adversaries, self._objective
        # DistributedDataParallel divides gradients by the number of ranks. Undo this, and divide by the
        # number of objects instead.
        scale = self._learners / objective.objects(batch.size)
        adversaries.begin(batch)
        sums = torch.zeros(4, dtype=torch.float64, device=batch.images.device)
        if adversaries.overlaps:
            with self._timers("clean"):
                clean = objective.clean(batch)
                if len(clean):
                    sums = sums + self._pass(clean, scale, last=False)
            forward_batches = [objective.attacked(batch, adversaries.finish(batch))]
        else:
            forward_batches = objective.together(batch, adversaries.finish(batch))
        together = "clean and adversarial" if len(batch.attacked) else "clean"
        with self._timers("adversarial" if adversaries.overlaps else together):
            for number, forward_batch in enumerate(forward_batches):
                sums = sums + self._pass(forward_batch, scale, last=number == len(forward_batches) - 1)
        adversaries.done()
        return sums

    def _pass(self, forward_batch: ForwardBatch, scale: float, last: bool) -> Tensor:
        """Forward and backward; the last micro-batch of the `last` pass averages gradients over ranks."""
        loss_sums = torch.zeros(4, dtype=torch.float64, device=forward_batch.images.device)
        micro_batches = list(forward_batch.split(self._compute.micro_batch))
        for number, micro_batch in enumerate(micro_batches):
            average = last and number == len(micro_batches) - 1
            alone = isinstance(self._model, DistributedDataParallel) and not average
            with self._model.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with self._compute.autocast(micro_batch.images.device):
                    logits = self._model(*self._objective.inputs(micro_batch))
                loss, sums = self._objective.loss(logits, micro_batch)
                (scale * loss).backward()  # type: ignore[no-untyped-call]
            loss_sums = loss_sums + sums
        return loss_sums


def learning_rate(step: int, total: int, optimiser: Optimiser) -> float:
    """Learning rate of a step (counted from 0): linear warm-up times the schedule over all `total` steps."""
    warm = min(1.0, (step + 1) / (optimiser.warmup_steps + 1))
    if optimiser.schedule == "cosine":
        return optimiser.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))
    if optimiser.schedule == "halfway" and step >= total // 2:
        return optimiser.learning_rate * warm / 5
    return optimiser.learning_rate * warm
