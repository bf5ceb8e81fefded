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

from hpcphotoz.attacks.ball import replace_rows
from hpcphotoz.config import Config
from hpcphotoz.data.order import attacked_mask
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.rank_batch import RankBatch


@dataclass(frozen=True)
class ForwardBatch:
    """Objects of a forward and backward pass."""

    images: Tensor  # (n, B, H, W)
    ebv: Tensor  # (n,)
    z_spec: Tensor  # (n,)
    attacked: Tensor  # (n,) bool
    clean_images: Tensor | None = None  # (n, B, H, W) the clean images, where a consistency is asked for

    def __len__(self) -> int:
        return len(self.images)

    def split(self, size: int | None) -> Iterator["ForwardBatch"]:
        """Micro-batches of at most `size` objects; one where there is none, so that every rank has a pass."""
        n = len(self)
        for first in range(0, max(n, 1), size or max(n, 1)):
            rows = slice(first, first + size if size else n)
            clean_images = None if self.clean_images is None else self.clean_images[rows]
            yield ForwardBatch(
                self.images[rows], self.ebv[rows], self.z_spec[rows], self.attacked[rows], clean_images
            )


class TrainingObjective:
    """The objective of a configuration.

    Args:
        config: objective, weight and labels.
        bins: what logits mean.
    """

    def __init__(self, config: Config, bins: RedshiftBins) -> None:
        self._config, self._bins, self._kind = config, bins, config.adversarial.objective

    def objects(self, size: int) -> int:
        """By how many objects the sum over a global batch of `size` is divided."""
        if self._kind != "append":
            return max(size, 1)
        return max(size + int(attacked_mask(np.arange(size), self._config.adversarial.fraction).sum()), 1)

    def together(self, batch: RankBatch, adv: Tensor) -> list[ForwardBatch]:
        """All objects in one forward batch, where there is a form that takes them so."""
        if self._kind == "consistency" and len(adv):
            return [self.clean(batch), self.attacked(batch, adv)]
        if self._kind == "append":
            both = [self.clean(batch), self.attacked(batch, adv)]
            return [
                ForwardBatch(
                    *(
                        torch.cat([getattr(forward_batch, name) for forward_batch in both])
                        for name in ("images", "ebv", "z_spec", "attacked")
                    )
                )
            ]
        return [
            ForwardBatch(
                replace_rows(batch.images, batch.attacked, adv), batch.ebv, batch.z_spec, attacked_rows(batch)
            )
        ]

    def clean(self, batch: RankBatch) -> ForwardBatch:
        """Objects whose pass needs no attacked image."""
        if self._kind == "append":
            return ForwardBatch(batch.images, batch.ebv, batch.z_spec, _all(batch.ebv, False))
        images, ebv, z_spec = (tensor[batch.clean] for tensor in (batch.images, batch.ebv, batch.z_spec))
        return ForwardBatch(images, ebv, z_spec, _all(ebv, False))

    def attacked(self, batch: RankBatch, adv: Tensor) -> ForwardBatch:
        """The attacked objects; adv: (m, B, H, W), in the order of `batch.attacked`."""
        ebv, z_spec = batch.ebv[batch.attacked], batch.z_spec[batch.attacked]
        clean_images = batch.images[batch.attacked] if self._kind == "consistency" else None
        return ForwardBatch(adv, ebv, z_spec, _all(ebv, True), clean_images)

    def inputs(self, forward_batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """What the network is given: images and E(B-V), clean partners first."""
        if forward_batch.clean_images is None:
            return forward_batch.images, forward_batch.ebv
        return torch.cat([forward_batch.clean_images, forward_batch.images]), torch.cat(
            [forward_batch.ebv, forward_batch.ebv]
        )

    def loss(self, logits: Tensor, forward_batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """The sum to be lowered, and sums to be reported.

        Args:
            logits: of `inputs(forward_batch)`.
            forward_batch: whose they are.

        Returns:
            A scalar; and (4,) float64: sum of the cross-entropies of clean images, their number, and both of
            the attacked ones.
        """
        logits = logits.float()
        wanted = target(forward_batch.z_spec, self._bins, self._config.optimiser.label_width)
        if forward_batch.clean_images is None:
            each = functional.cross_entropy(logits, wanted, reduction="none")
            return each.sum(), sum_losses(each.detach(), forward_batch.attacked)
        clean, attacked = logits[: len(forward_batch)], logits[len(forward_batch) :]
        each = functional.cross_entropy(clean, wanted, reduction="none")
        apart = functional.kl_div(
            functional.log_softmax(attacked, 1),
            functional.log_softmax(clean, 1),
            reduction="sum",
            log_target=True,
        )
        with torch.no_grad():
            theirs = functional.cross_entropy(attacked, wanted, reduction="none")
            loss_sums = sum_losses(
                torch.cat([each, theirs]), torch.cat([~forward_batch.attacked, forward_batch.attacked])
            )
        return each.sum() + self._config.adversarial.consistency_weight * apart, loss_sums


def attacked_rows(batch: RankBatch) -> Tensor:
    """(n,) bool: which objects are attacked."""
    every = torch.zeros(len(batch.images), dtype=torch.bool, device=batch.images.device)
    # `every[rows] = True` would copy True from the host, wait for the device, and be refused in a capture.
    return every.index_fill_(0, batch.attacked, True)


def sum_losses(each: Tensor, attacked: Tensor) -> Tensor:
    """(4,) float64: sum and number of the clean, sum and number of the attacked values."""
    each = each.double()
    zero = each.new_zeros(())
    clean, adversarial = torch.where(attacked, zero, each).sum(), torch.where(attacked, each, zero).sum()
    return torch.stack([clean, (~attacked).sum().double(), adversarial, attacked.sum().double()])


def target(z: Tensor, bins: RedshiftBins, label_width: float) -> Tensor:
    """The label of each object: the index of its bin (N,), or with `label_width` a Gaussian over bins (N,
    bins).
    """
    if not label_width:
        return bins.index(z)
    distance = (bins.centres(z.device) - z[:, None]) / (label_width * bins.width)
    return torch.softmax(-0.5 * distance**2, dim=1)


def _all(like: Tensor, value: bool) -> Tensor:
    return torch.full((len(like),), value, device=like.device)
