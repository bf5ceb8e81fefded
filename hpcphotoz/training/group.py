"""The process group of a run: gloo on CPU, NCCL on GPU; and agreement between its ranks."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from hpcphotoz.errors import BadInput
from hpcphotoz.world import World

_TIMEOUT = timedelta(seconds=300)


class OtherRankFailed(SystemExit):
    """Another rank reports why the run cannot go on; this one ends quietly with the same status 2."""


@contextmanager
def process_group(world: World) -> Iterator[torch.device]:
    """Join the other ranks and leave them at the end; yields this rank's device.

    Raises:
        BadInput: more than one rank but no address to meet at.
    """
    device = torch.device("cpu")
    gpus = torch.cuda.device_count()
    if gpus and world.launcher == "torchrun" and world.local_size > gpus:
        # NCCL refuses two ranks on one GPU. (srun may bind one GPU to each task: then each counts one.)
        if world.is_first:
            print(f"{world.local_size} ranks on a node with {gpus} GPU(s): training on CPUs", file=sys.stderr)
    elif gpus:
        device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if world.size == 1:
        yield device
        return
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise BadInput(
            f"{world.size} ranks started by {world.launcher} but MASTER_ADDR and MASTER_PORT are not set: "
            "use torchrun or `hpcphotoz launch`, or set them to the first node's name and a free port"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=_TIMEOUT)
    try:
        yield device
    finally:
        # DistributedDataParallel lies in reference cycles: collected after its group, at the interpreter's
        # end, it aborted one run in 15 ("terminate called without an active exception").
        gc.collect()
        dist.destroy_process_group()


def agree(problem: str | None, world: World) -> None:
    """End all ranks if any has a problem: the first one says it, the others stop quietly.

    Raises:
        BadInput: on the first rank that has a problem.
        OtherRankFailed: on the others.
    """
    problems = gather(problem, world)
    first = next((rank for rank, text in enumerate(problems) if text), None)
    if first is None:
        return
    if first == world.rank:
        raise BadInput(str(problem))
    raise OtherRankFailed(2)


def gather(item: str | None, world: World) -> list[str | None]:
    """One text of every rank, by rank."""
    if world.size == 1:
        return [item]
    items: list[str | None] = [None] * world.size
    dist.all_gather_object(items, item)
    return items


def add_up(values: Tensor, world: World) -> Tensor:
    """Sum over ranks, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def collect(values: Tensor, world: World) -> Tensor:
    """The rows of every rank's (n, ...) tensor, one rank after the other; n may differ."""
    if world.size == 1:
        return values
    counts = torch.zeros(world.size, dtype=torch.int64, device=values.device)
    counts[world.rank] = len(values)
    dist.all_reduce(counts)
    padded = values.new_zeros((int(counts.max()), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts.tolist(), strict=True)])
