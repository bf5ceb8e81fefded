"""Running statistics of batch normalisation: the same on all learners."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcphotoz.training.distributed import group
from hpcphotoz.training.overlap.roles import RankRole


def agree_on_statistics(statistics: Sequence[Tensor], role: RankRole, where: Tensor | None = None) -> None:
    """Give running statistics their mean over the learners, the same on all.

    Each learner has gathered those of its own slices. Attacks and validations use them, so that an object
    gets the same adversarial image and the same PDF on whichever rank it is.

    Args:
        statistics: of this rank's network, changed in place; the same number on all ranks.
        role: of this rank, a learner.
        where: () bool, on their device: whether to; None: yes.
    """
    if role.world.size == 1 or not statistics:
        return
    flat = torch.cat([tensor.flatten() for tensor in statistics])
    total = group.sum_over_ranks(flat.clone(), role.world, role.subgroup) / role.world.size
    total = total if where is None else torch.where(where, total, flat)
    parts = torch.split(total, [tensor.numel() for tensor in statistics])
    for tensor, part in zip(statistics, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
