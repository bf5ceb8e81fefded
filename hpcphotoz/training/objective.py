"""What training minimises: cross-entropy over the objects of passes that can be taken together or apart.

    replace      sum over clean and attacked objects / objects of the global batch
    append       the same over all clean objects and, beside them, the attacked ones / number of both
    consistency  cross-entropy of the clean images + w KL(clean PDF | attacked PDF) of the attacked objects /
                 objects of the global batch: TRADES (Zhang et al. 2019, arXiv:1901.08573) on a fraction

`off` takes `together`, the other overlaps `clean` and `attacked`: sums over the same objects.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpcphotoz.attacks.problem import put
from hpcphotoz.config import Config, Training
from hpcphotoz.data.order import adversarial
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.work import Work


@dataclass(frozen=True)
class Part:
    """Objects of a forward and backward pass."""

    images: Tensor  # (n, B, H, W)
    ebv: Tensor  # (n,)
    z_spec: Tensor  # (n,)
    attacked: Tensor  # (n,) bool
    partner: Tensor | None = None  # (n, B, H, W) the clean images, where a consistency is asked for

    def __len__(self) -> int:
        return len(self.images)

    def split(self, size: int | None) -> Iterator["Part"]:
        """Micro-batches of at most `size` objects; one where there is none, so that every rank has a pass."""
        n = len(self)
        for first in range(0, max(n, 1), size or max(n, 1)):
            rows = slice(first, first + size if size else n)
            partner = None if self.partner is None else self.partner[rows]
            yield Part(self.images[rows], self.ebv[rows], self.z_spec[rows], self.attacked[rows], partner)


class Objective:
    """The objective of a configuration.

    Args:
        config: objective, weight and labels.
        bins: what logits mean.
    """

    def __init__(self, config: Config, bins: RedshiftBins) -> None:
        self._config, self._bins, self._kind = config, bins, config.training.objective

    def objects(self, size: int) -> int:
        """By how many objects the sum over a global batch of `size` is divided."""
        if self._kind != "append":
            return max(size, 1)
        return max(size + int(adversarial(np.arange(size), self._config.attack.fraction).sum()), 1)

    def together(self, work: Work, adv: Tensor) -> list[Part]:
        """All objects in one part, where there is a form that takes them so."""
        if self._kind == "consistency" and len(adv):
            return [self.clean(work), self.attacked(work, adv)]
        if self._kind == "append":
            both = [self.clean(work), self.attacked(work, adv)]
            return [
                Part(
                    *(
                        torch.cat([getattr(part, name) for part in both])
                        for name in ("images", "ebv", "z_spec", "attacked")
                    )
                )
            ]
        return [Part(put(work.images, work.attacked, adv), work.ebv, work.z_spec, marked(work))]

    def clean(self, work: Work) -> Part:
        """Objects whose pass needs no attacked image."""
        if self._kind == "append":
            return Part(work.images, work.ebv, work.z_spec, _all(work.ebv, False))
        images, ebv, z_spec = (tensor[work.clean] for tensor in (work.images, work.ebv, work.z_spec))
        return Part(images, ebv, z_spec, _all(ebv, False))

    def attacked(self, work: Work, adv: Tensor) -> Part:
        """The attacked objects; adv: (m, B, H, W), in the order of `work.attacked`."""
        ebv, z_spec = work.ebv[work.attacked], work.z_spec[work.attacked]
        partner = work.images[work.attacked] if self._kind == "consistency" else None
        return Part(adv, ebv, z_spec, _all(ebv, True), partner)

    def inputs(self, part: Part) -> tuple[Tensor, Tensor]:
        """What the network is given: images and E(B-V), clean partners first."""
        if part.partner is None:
            return part.images, part.ebv
        return torch.cat([part.partner, part.images]), torch.cat([part.ebv, part.ebv])

    def loss(self, logits: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """The sum to be lowered, and sums to be reported.

        Args:
            logits: of `inputs(part)`.
            part: whose they are.

        Returns:
            A scalar; and (4,) float64: sum of the cross-entropies of clean images, their number, and both of
            the attacked ones.
        """
        logits = logits.float()
        wanted = target(part.z_spec, self._bins, self._config.training)
        if part.partner is None:
            each = functional.cross_entropy(logits, wanted, reduction="none")
            return each.sum(), sums(each.detach(), part.attacked)
        clean, attacked = logits[: len(part)], logits[len(part) :]
        each = functional.cross_entropy(clean, wanted, reduction="none")
        apart = functional.kl_div(
            functional.log_softmax(attacked, 1),
            functional.log_softmax(clean, 1),
            reduction="sum",
            log_target=True,
        )
        with torch.no_grad():
            theirs = functional.cross_entropy(attacked, wanted, reduction="none")
            told = sums(torch.cat([each, theirs]), torch.cat([~part.attacked, part.attacked]))
        return each.sum() + self._config.training.consistency_weight * apart, told


def marked(work: Work) -> Tensor:
    """(n,) bool: which objects are attacked."""
    every = torch.zeros(len(work.images), dtype=torch.bool, device=work.images.device)
    # `every[rows] = True` would copy True from the host, wait for the device, and be refused in a capture.
    return every.index_fill_(0, work.attacked, True)


def sums(each: Tensor, attacked: Tensor) -> Tensor:
    """(4,) float64: sum and number of the clean, sum and number of the attacked values."""
    each = each.double()
    zero = each.new_zeros(())
    clean, adversarial = torch.where(attacked, zero, each).sum(), torch.where(attacked, each, zero).sum()
    return torch.stack([clean, (~attacked).sum().double(), adversarial, attacked.sum().double()])


def target(z: Tensor, bins: RedshiftBins, training: Training) -> Tensor:
    """The label of each object: the index of its bin (N,), or with `label_width` a Gaussian over bins (N,
    bins).
    """
    if not training.label_width:
        return bins.index(z)
    distance = (bins.centres(z.device) - z[:, None]) / (training.label_width * bins.width)
    return torch.softmax(-0.5 * distance**2, dim=1)


def _all(like: Tensor, value: bool) -> Tensor:
    return torch.full((len(like),), value, device=like.device)
