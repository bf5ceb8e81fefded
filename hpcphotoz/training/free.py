"""Free adversarial training (Shafahi et al. 2019, arXiv:1904.12843): one backward pass gives the gradient of
the weights, for an update, and that of the attacked images, for their next step.

A batch is taken `attack.steps` times: K updates for the cost of K clean steps. The perturbation begins anew
for each batch, at the random start of its object, so that it depends on no other batch or rank.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz.attacks.problem import Ball, RandomStart, problem, put
from hpcphotoz.attacks.run import key_of
from hpcphotoz.config import Config
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.generate import attack_at, start_seed
from hpcphotoz.training.objective import marked, sums, target
from hpcphotoz.training.phases import Phases
from hpcphotoz.training.speed import Speed
from hpcphotoz.training.work import Work


class FreeStep:
    """Takes all updates of a batch; arguments as `step.Step`, micro-batches excepted."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        config: Config,
        bins: RedshiftBins,
        speed: Speed,
        learners: int = 1,
        phases: Phases | None = None,
    ) -> None:
        self._model, self._optimiser, self._config, self._bins = model, optimiser, config, bins
        self._speed, self._learners, self._phases = speed, learners, phases or Phases()

    def __call__(self, work: Work) -> Tensor:
        """Update K times; returns as `step.Step`, of the last of them."""
        attack, rows = attack_at(work.step, self._config.attack, self._config.training), work.attacked
        unit = work.sky_sigma[rows]
        if attack.ball == "l2":
            unit = unit * math.sqrt(work.images[0].numel() if len(work.images) else 1)
        ball, start = Ball(attack.eps * unit, attack.ball), None
        if attack.random_start:
            start = RandomStart(work.object_id[rows], start_seed(self._config), work.epoch)
        step_size = attack.step_size * unit if attack.step_size else None
        given = problem(
            work.images[rows],
            None,
            work.z_spec[rows],
            ball,
            step_size,
            attack.steps / 2.5,
            work.object_id[rows],
        )
        adv = given.begin(attack.ball, key_of(start, work.images.device), 0) if len(rows) else given.images
        told = torch.zeros(4, dtype=torch.float64, device=work.images.device)
        for _ in range(attack.steps):
            told, gradient = self._update(work, adv)
            if len(rows):
                with self._phases("attack"):
                    adv = given.advance(attack.ball, adv, gradient)
        return told

    def _update(self, work: Work, adv: Tensor) -> tuple[Tensor, Tensor]:
        """One forward and backward pass and one update; also the gradient at the attacked images."""
        adv = adv.detach().requires_grad_()
        images, attacked = put(work.images, work.attacked, adv), marked(work)
        self._optimiser.zero_grad()
        with self._phases("clean and adversarial"):
            with self._speed.autocast(images.device):
                logits = self._model(images, work.ebv)
            wanted = target(work.z_spec, self._bins, self._config.training)
            each = functional.cross_entropy(logits.float(), wanted, reduction="none")
            (each.sum() * (self._learners / max(work.size, 1))).backward()  # type: ignore[no-untyped-call]
        with self._phases("optimiser"):
            self._optimiser.step()
        assert adv.grad is not None
        return sums(each.detach(), attacked), adv.grad.contiguous(memory_format=torch.channels_last)
