"""One optimisation step: forward and backward passes over clean and attacked objects, one update."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.config import Training
from hpcphotoz.training.objective import Objective, Part
from hpcphotoz.training.overlap import Adversaries
from hpcphotoz.training.phases import Phases
from hpcphotoz.training.speed import Speed
from hpcphotoz.training.work import Work


class Step:
    """Takes optimisation steps.

    Gradients are those of the mean over the *global* batch, so that ranks with slices of different length
    (or none) add up to what one rank would compute; they are averaged over ranks once, in the last pass.

    Args:
        model: the network, wrapped in DistributedDataParallel where several ranks train.
        optimiser: of its parameters.
        adversaries: where the attacked images come from, and whether clean passes go on meanwhile.
        objective: what is minimised.
        speed: precision, micro-batches.
        learners: ranks that train.
        phases: told what begins and ends.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        adversaries: Adversaries,
        objective: Objective,
        speed: Speed,
        learners: int = 1,
        phases: Phases | None = None,
    ) -> None:
        self._model, self._optimiser, self._adversaries = model, optimiser, adversaries
        self._objective, self._speed, self._learners = objective, speed, learners
        self._phases = phases or Phases()

    def __call__(self, work: Work) -> Tensor:
        """Attack, forward, backward, update; returns as `gradients`."""
        sums = self.gradients(work)
        with self._phases("optimiser"):
            self._optimiser.step()
        return sums

    def gradients(self, work: Work) -> Tensor:
        """Attack, forward, backward.

        Returns:
            (4,) float64: sum of the losses of this rank's clean objects, their number, the same of the
            attacked ones.
        """
        self._optimiser.zero_grad()
        adversaries, objective = self._adversaries, self._objective
        # DistributedDataParallel averages gradients over ranks: undo its division, divide by the objects
        # there are.
        scale = self._learners / objective.objects(work.size)
        adversaries.begin(work)
        sums = torch.zeros(4, dtype=torch.float64, device=work.images.device)
        if adversaries.beside:
            with self._phases("clean"):
                clean = objective.clean(work)
                if len(clean):
                    sums = sums + self._pass(clean, scale, last=False)
            parts = [objective.attacked(work, adversaries.finish(work))]
        else:
            parts = objective.together(work, adversaries.finish(work))
        together = "clean and adversarial" if len(work.attacked) else "clean"
        with self._phases("adversarial" if adversaries.beside else together):
            for number, part in enumerate(parts):
                sums = sums + self._pass(part, scale, last=number == len(parts) - 1)
        adversaries.done()
        return sums

    def _pass(self, part: Part, scale: float, last: bool) -> Tensor:
        """Forward and backward; gradients are averaged over ranks in the last micro-batch of the last
        part.
        """
        told = torch.zeros(4, dtype=torch.float64, device=part.images.device)
        chunks = list(part.split(self._speed.micro_batch))
        for number, chunk in enumerate(chunks):
            average = last and number == len(chunks) - 1
            alone = isinstance(self._model, DistributedDataParallel) and not average
            with self._model.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with self._speed.autocast(chunk.images.device):
                    logits = self._model(*self._objective.inputs(chunk))
                loss, sums = self._objective.loss(logits, chunk)
                (scale * loss).backward()  # type: ignore[no-untyped-call]
            told = told + sums
        return told


def learning_rate(step: int, total: int, training: Training) -> float:
    """The rate of a step counted from 0: linear warm-up, then the schedule over all `total` steps."""
    warm = min(1.0, (step + 1) / (training.warmup_steps + 1))
    if training.schedule == "cosine":
        return training.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))
    if training.schedule == "halfway" and step >= total // 2:
        return training.learning_rate * warm / 5
    return training.learning_rate * warm
