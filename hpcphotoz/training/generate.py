"""The attack of a step: on which rows, how strong by now, in which precision, keyed by object and epoch."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from hpcphotoz.attacks import Passes, perturb
from hpcphotoz.attacks.graph import Graphs, kind_of
from hpcphotoz.config import Attack, Config, Training
from hpcphotoz.data.order import key_of
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.phases import Phases
from hpcphotoz.training.speed import Speed
from hpcphotoz.training.work import Work

_START = 11  # purpose of random numbers: streams that must not repeat each other


class Generator:
    """Makes the adversarial images of steps, the same on any rank.

    Args:
        module: the bare network.
        config: the attack, its fraction, its warm-up, the seed.
        bins: what logits mean.
        speed: precision, compilation, graphs.
        phases: told when the attack begins and ends.
    """

    def __init__(
        self,
        module: nn.Module,
        config: Config,
        bins: RedshiftBins,
        speed: Speed,
        phases: Phases | None = None,
    ) -> None:
        self._module, self._config, self._bins = module, config, bins
        self._passes, self._phases = speed.passes, phases or Phases()
        self._graphs = Graphs() if speed.graphs == "attack" else None

    def __call__(self, work: Work) -> Tensor:
        """Attacked images of the rows `work.attacked`, (m, B, H, W) float32 nMgy; none: none."""
        rows = work.attacked
        images = work.images[rows]
        if not len(rows):
            return images
        # Outside the caller's autocast: the attack has a precision of its own.
        with self._phases("attack"), torch.autocast(images.device.type, enabled=False):
            attack = attack_at(work.step, self._config.attack, self._config.training)
            return perturb(
                self._module,
                images,
                work.ebv[rows],
                work.z_spec[rows],
                work.sky_sigma[rows],
                work.object_id[rows],
                attack=attack,
                bins=self._bins,
                seed=start_seed(self._config),
                epoch=work.epoch,
                passes=self._passes_of(attack, work),
            )

    def _passes_of(self, attack: Attack, work: Work) -> Passes:
        if work.images.is_cuda and (work.skipped or work.size < self._config.training.global_batch):
            # Of another shape than all others: compiling and capturing it would take longer than it does.
            return replace(self._passes, compiled=False)
        if self._graphs is None:
            return self._passes
        return replace(self._passes, replay=partial(self._graphs, kind_of(attack)))


def start_seed(config: Config) -> int:
    """Seed of the random starts."""
    return key_of(config.training.seed, _START) >> 1


def attack_at(step: int, attack: Attack, training: Training) -> Attack:
    """The attack of a step counted from 0: eps and step size grow linearly, K from 1, over the warm-ups."""
    grown = min(1.0, (step + 1) / (training.eps_warmup_steps + 1))
    steps = attack.steps
    if step < training.k_warmup_steps:
        steps = 1 + (attack.steps - 1) * step // training.k_warmup_steps
    if grown == 1 and steps == attack.steps:
        return attack
    changed = {"eps": grown * attack.eps, "step_size": grown * attack.step_size, "steps": steps}
    return attack.model_copy(update=changed)
