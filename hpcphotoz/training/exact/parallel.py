"""A network whose gradients are averaged over the ranks that train it."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.config import Compute
from hpcphotoz.training.distributed.group import Subgroup
from hpcphotoz.training.exact.rank_order import average_in_rank_order


def in_parallel(
    module: nn.Module,
    device: torch.device,
    compute: Compute,
    size: int,
    subgroup: Subgroup,
    broadcast_buffers: bool,
) -> DistributedDataParallel:
    """The network in DistributedDataParallel; in deterministic mode gradients are summed in order of rank.

    Args:
        module, device: the network, on the device of this rank.
        compute: size of the buckets of gradients, and whether the mode is deterministic.
        size, subgroup: number of ranks that train, and their process group.
        broadcast_buffers: whether rank 0 gives its buffers to the others before each forward pass.
    """
    parallel = DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        process_group=subgroup,
        bucket_cap_mb=compute.bucket_mb,
        gradient_as_bucket_view=True,
    )
    # The argument of this name prints a warning from torch 2.13 on, and that of the new name is not in 2.11.
    parallel.broadcast_buffers = broadcast_buffers
    if compute.deterministic:
        average_in_rank_order(parallel, size, subgroup)
    return parallel
