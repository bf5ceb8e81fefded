"""The training objectives: cross-entropy of clean and attacked images, and TRADES.

    replace      the attacked images replace their clean ones: sum of the cross-entropies / objects
    append       the attacked images come in addition to all clean ones: sum of the cross-entropies / images
    consistency  (sum of the cross-entropies of all clean images
                  + w * sum of KL(clean PDF | attacked PDF) of the attacked objects) / objects:
                 TRADES (Zhang et al. 2019, arXiv:1901.08573) on a fraction of the batch

Objects and images are those of the global batch. Without overlap a step runs one pass, over `together`. The
overlaps run two, over `clean` and over `attacked`, whose sums add up to the same objective.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpcphotoz.attacks.ball import replace_rows
from hpcphotoz.config import Config
from hpcphotoz.data.order import attacked_mask
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.rank_batch import RankBatch


class Losses(NamedTuple):
    """Losses of one rank, summed, and the rows whose loss is not finite; on the device."""

    # (4,) float64: sum of the cross-entropies of clean images, their number, sum of the cross-entropies of
    # attacked images, their number.
    sums: Tensor
    bad_rows: Tensor  # (m,) int64: rows of the rank batch whose loss is not finite; -1 in all other places

    @classmethod
    def together(cls, losses: Sequence[Self]) -> Self:
        """Those of several passes, at least one, as one."""
        sums = losses[0].sums
        for more in losses[1:]:
            sums = sums + more.sums
        return cls(sums, torch.cat([each.bad_rows for each in losses]))


@dataclass(frozen=True)
class ForwardBatch:
    """Images and labels of one forward and backward pass."""

    images: Tensor  # (n, B, H, W)
    ebv: Tensor  # (n,)
    z_spec: Tensor  # (n,)
    attacked: Tensor  # (n,) bool
    rows: Tensor  # (n,) int64: which of the rank batch
    clean_images: Tensor | None = None  # (n, B, H, W) the clean images, for objective consistency

    def __len__(self) -> int:
        return len(self.images)

    def split(self, size: int | None) -> Iterator["ForwardBatch"]:
        """Yields micro-batches of at most `size` objects; one if empty, so that every rank has a pass."""
        n = len(self)
        for first in range(0, max(n, 1), size or max(n, 1)):
            rows = slice(first, first + size if size else n)
            clean_images = None if self.clean_images is None else self.clean_images[rows]
            labels = self.ebv[rows], self.z_spec[rows], self.attacked[rows], self.rows[rows]
            yield ForwardBatch(self.images[rows], *labels, clean_images)


@dataclass(frozen=True)
class TrainingObjective:
    """The objective that a configuration names."""

    config: Config
    bins: RedshiftBins

    @property
    def _kind(self) -> str:
        return self.config.adversarial.objective

    def objects(self, size: int) -> int:
        """The number by which the sum over a global batch of `size` objects is divided; at least 1."""
        if self._kind != "append":
            return max(size, 1)
        return max(size + int(attacked_mask(np.arange(size), self.config.adversarial.fraction).sum()), 1)

    def together(self, batch: RankBatch, adv: Tensor) -> list[ForwardBatch]:
        """Clean and attacked objects as one forward batch; as two for objective consistency."""
        if self._kind == "consistency" and len(adv):
            return [self.clean(batch), self.attacked(batch, adv)]
        if self._kind == "append":
            both = [self.clean(batch), self.attacked(batch, adv)]
            names = ("images", "ebv", "z_spec", "attacked", "rows")
            return [ForwardBatch(*(torch.cat([getattr(part, name) for part in both]) for name in names))]
        images = replace_rows(batch.images, batch.attacked, adv)
        return [ForwardBatch(images, batch.ebv, batch.z_spec, attacked_rows(batch), _rows(batch))]

    def clean(self, batch: RankBatch) -> ForwardBatch:
        """The objects whose pass needs no attacked images; it can run during the attack."""
        if self._kind == "append":
            return ForwardBatch(batch.images, batch.ebv, batch.z_spec, _all(batch.ebv, False), _rows(batch))
        images, ebv, z_spec = (tensor[batch.clean] for tensor in (batch.images, batch.ebv, batch.z_spec))
        return ForwardBatch(images, ebv, z_spec, _all(ebv, False), batch.clean)

    def attacked(self, batch: RankBatch, adv: Tensor) -> ForwardBatch:
        """The attacked objects; adv: (m, B, H, W), in the order of `batch.attacked`."""
        ebv, z_spec = batch.ebv[batch.attacked], batch.z_spec[batch.attacked]
        clean_images = batch.images[batch.attacked] if self._kind == "consistency" else None
        return ForwardBatch(adv, ebv, z_spec, _all(ebv, True), batch.attacked, clean_images)

    def inputs(self, forward_batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """Images and E(B-V) for the network; for objective consistency the clean images come first."""
        if forward_batch.clean_images is None:
            return forward_batch.images, forward_batch.ebv
        images, ebv = [forward_batch.clean_images, forward_batch.images], [forward_batch.ebv] * 2
        return torch.cat(images), torch.cat(ebv)

    def loss(self, logits: Tensor, forward_batch: ForwardBatch) -> tuple[Tensor, Losses]:
        """The loss of a pass, (), summed over its objects, and its `Losses`, from logits of `inputs`."""
        z, label_width = forward_batch.z_spec, self.config.optimiser.label_width
        if forward_batch.clean_images is None:
            each = self.bins.loss("cross_entropy", logits, z, label_width)
            sums = sum_losses(each.detach(), forward_batch.attacked)
            return each.sum(), Losses(sums, bad_rows(each, forward_batch.rows))
        logits = logits.float()
        clean, attacked = logits[: len(forward_batch)], logits[len(forward_batch) :]
        each = self.bins.loss("cross_entropy", clean, z, label_width)
        log_attacked, log_clean = functional.log_softmax(attacked, 1), functional.log_softmax(clean, 1)
        apart = functional.kl_div(log_attacked, log_clean, reduction="sum", log_target=True)
        with torch.no_grad():
            theirs = self.bins.loss("cross_entropy", attacked, z, label_width)
            marks = torch.cat([~forward_batch.attacked, forward_batch.attacked])
            sums = sum_losses(torch.cat([each, theirs]), marks)
            losses = Losses(sums, bad_rows(each + theirs, forward_batch.rows))
        return each.sum() + self.config.adversarial.consistency_weight * apart, losses


def attacked_rows(batch: RankBatch) -> Tensor:
    """Mask of the attacked objects, (n,) bool."""
    every = torch.zeros(len(batch.images), dtype=torch.bool, device=batch.images.device)
    # `every[rows] = True` copies True from the host: it waits for the device, and a graph capture refuses it.
    return every.index_fill_(0, batch.attacked, True)


def bad_rows(each: Tensor, rows: Tensor) -> Tensor:
    """Rows whose value is not finite; -1 for the others, so that the host need not know how many there are.

    Args:
        each: (n,) a value of each row.
        rows: (n,) int64.
    """
    return rows.masked_fill(each.detach().isfinite(), -1)


def sum_losses(each: Tensor, attacked: Tensor) -> Tensor:
    """(4,) float64: sum and number of the clean values, sum and number of the attacked ones."""
    each = each.double()
    zero = each.new_zeros(())
    clean, adversarial = torch.where(attacked, zero, each).sum(), torch.where(attacked, each, zero).sum()
    return torch.stack([clean, (~attacked).sum().double(), adversarial, attacked.sum().double()])


def _rows(batch: RankBatch) -> Tensor:
    return torch.arange(len(batch.images), device=batch.images.device)


def _all(like: Tensor, value: bool) -> Tensor:
    return torch.full((len(like),), value, device=like.device)
