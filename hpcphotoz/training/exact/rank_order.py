"""Averages gradients over ranks in order of rank, so that the sum depends on no layout of buckets.

DistributedDataParallel lays gradients out anew after the first step of a process. A ring all-reduce begins
the sum of an element at a rank that depends on where it lies: with three ranks and more, the first step after
a resume then rounds otherwise than the same step of an unbroken run. Here rank r receives the r-th part of a
bucket from every rank, adds the parts in order of rank, and gives the sums to all: as many bytes as a ring.
"""

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.training.distributed.group import Subgroup


def mean_in_rank_order(values: Tensor, size: int, subgroup: Subgroup = None) -> Tensor:
    """Mean over ranks, the sum taken in order of rank.

    Args:
        values: (n,), the same n on every rank; not changed.
        size: number of ranks.
        subgroup: their process group; None: all ranks.
    """
    part = -(-len(values) // size)
    sent = functional.pad(values, (0, part * size - len(values)))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=subgroup)
    first, *others = received.view(size, part)
    total = first.clone()
    for row in others:
        total += row
    dist.all_gather(list(sent.view(size, part)), total / size, group=subgroup)
    return sent[: len(values)]


def average_in_rank_order(model: DistributedDataParallel, size: int, subgroup: Subgroup) -> None:
    """Let a model average its gradients with `mean_in_rank_order`; called before its first pass.

    Ranks exchange a bucket while the backward pass waits.
    """

    def hook(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        found = torch.futures.Future[Tensor]()
        found.set_result(mean_in_rank_order(bucket.buffer(), size, subgroup))
        return found

    model.register_comm_hook(None, hook)
