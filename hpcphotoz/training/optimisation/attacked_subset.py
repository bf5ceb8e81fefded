"""The validation objects that are attacked after each epoch, always the same ones, and their redshifts."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.attacks import perturb
from hpcphotoz.data.order import derive_key, keyed_hash
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.device import copy_to_device
from hpcphotoz.training.adversaries import start_seed
from hpcphotoz.training.components import TrainingComponents

_CHOICE = 14  # purpose of these random numbers, different from that of all others


def chosen(object_id: npt.NDArray[np.int64], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which objects are attacked: those whose hash under (seed, object) is in the lowest `fraction`."""
    words = keyed_hash(object_id.astype(np.uint64), derive_key(seed, _CHOICE))
    return (words >> np.uint64(11)) < np.uint64(int(min(fraction, 1.0) * 2**53))


@dataclass
class AttackedSubset:
    """Gathers a rank's objects that are attacked, and attacks them in passes of equal size.

    The attack is that of section `attack` at full strength, on the network in evaluation mode. Its random
    starts are those of (run.seed, object), the same after each epoch. An object takes 2 K / 3 + 1 / 3 times
    as long as one of a clean training step, with K = attack.steps.
    """

    components: TrainingComponents
    fraction: float  # of the validation objects
    rows: int  # objects of a pass: one shape, which cuDNN has to try once
    _held: list[Tensor] = field(default_factory=list)  # images, ebv, z_spec, sky_sigma, object_id
    _found: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, components: TrainingComponents, objects: int, learners: int) -> Self | None:
        """The subset of some validation objects, over all `learners`; None: none is attacked."""
        config = components.config
        wanted = config.adversarial.attacked_in_validation
        rows = -(-config.run.global_batch // learners)
        return cls(components, wanted / objects, rows) if wanted and objects else None

    def add(self, batch: Batch, images: Tensor) -> None:
        """Take the objects of the subset from a batch; attack, if they are enough for a pass.

        Args:
            batch: labels, those for random numbers in host memory.
            images: (n, B, H, W) float32, nMgy.
        """
        seed = self.components.config.run.seed
        device = images.device
        places = torch.from_numpy(np.flatnonzero(chosen(batch.object_id.numpy(), self.fraction, seed)))
        if not len(places):
            return
        rows, ids = copy_to_device(places, device), copy_to_device(batch.object_id[places], device)
        new = [images[rows], batch.ebv[rows], batch.z_spec[rows], batch.sky_sigma[rows], ids]
        self._held = [torch.cat(both) for both in zip(self._held, new, strict=True)] if self._held else new
        while len(self._held[0]) >= self.rows:
            self._attack(self.rows)

    def predictions(self) -> Tensor:
        """(m, 2) mean redshift under attack and spectroscopic redshift of all objects that were added."""
        if self._held and len(self._held[0]):
            self._attack(len(self._held[0]))
        return torch.cat([torch.zeros(0, 2, device=self.components.device), *self._found])

    def _attack(self, n: int) -> None:
        """Attack the first n of the objects that are held."""
        self._found.append(self._attacked(*(column[:n] for column in self._held)))
        self._held = [column[n:] for column in self._held]

    def _attacked(self, images: Tensor, ebv: Tensor, z: Tensor, sky_sigma: Tensor, ids: Tensor) -> Tensor:
        components = self.components
        config, compute = components.config, components.compute
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            adv = perturb(
                components.module,
                *(images, ebv, z, sky_sigma, ids),
                attack=config.attack,
                bins=components.bins,
                seed=start_seed(config),
                passes=replace(compute.passes, compiled=False),
            )
        with compute.autocast(images.device):
            logits: Tensor = components.module(adv, ebv)
        return torch.stack([components.bins.mean(logits), z], dim=1)
