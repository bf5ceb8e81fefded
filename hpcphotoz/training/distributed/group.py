"""The process group of a run (gloo on CPUs, NCCL on GPUs), and its collectives."""

import gc
import json
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.node.interfaces import nccl_interfaces
from hpcphotoz.output import say
from hpcphotoz.training.distributed import gloo
from hpcphotoz.training.distributed.preflight import check_ranks, difference
from hpcphotoz.training.distributed.rank_device import choose_device, identity
from hpcphotoz.training.distributed.rendezvous import Rendezvous
from hpcphotoz.training.monitoring.lost_ranks import (
    JoinedRanks,
    RankLost,
    WaitLimits,
    detect_lost_ranks,
    joined,
)
from hpcphotoz.world import World, tasks_of_allocation

Subgroup = dist.ProcessGroup | None  # some of the ranks; None: all


class OtherRankFailed(SystemExit):
    """Ends this rank without a message, with status 2: another rank reports why the run cannot go on."""


@contextmanager
def process_group(
    world: World, limits: WaitLimits, options: Mapping[str, str], wanted: str = "auto"
) -> Iterator[torch.device]:
    """Join the other ranks, and leave them at the end; yields this rank's device.

    Args:
        world: this rank's place among all ranks.
        limits: how long this rank waits for others, from the start on.
        options: name and value of every option that must be the same on all ranks.
        wanted: the device: "auto", "cuda" or "cpu"; see `choose_device`.

    Raises:
        BadInput: several ranks but no address to meet at; no GPU although one was asked for; options or an
            installation that differ from those of rank 0.
        OtherRankFailed: another rank has such a problem, and reports it.
        RankLost: not all ranks joined in time, or they cannot sum over all.
    """
    device, problem = torch.device("cpu"), None
    try:
        device = choose_device(world, wanted)
    except BadInput as error:
        if world.size == 1:
            raise
        problem = str(error)
    if world.size == 1:
        if (tasks := tasks_of_allocation()) > 1:
            only = f"one process in an allocation of {tasks} tasks: `srun` starts one in each of them"
            say(f"hpcphotoz: warning: {only}", sys.stderr)
        yield device
        return
    ranks = _join(world, limits, options, device, problem)
    joined.append(ranks)
    try:
        with detect_lost_ranks(lambda: f"rank {world.rank} sums over all ranks", limits):
            ranks.clock_ahead_s = check_ranks(world, device, ranks.hosts)
        yield device
    finally:
        joined.remove(ranks)
        if ranks.presence:
            ranks.presence.close()
        # Reference cycles hold DistributedDataParallel. Collected after its group, at the end of the
        # interpreter, it aborted one run in 15 ("terminate called without an active exception").
        gc.collect()
        dist.destroy_process_group()


def _join(
    world: World, limits: WaitLimits, options: Mapping[str, str], device: torch.device, problem: str | None
) -> JoinedRanks:
    """Make the process group once every rank is there and has a device of its own."""
    on_cpus, listens_at = device.type == "cpu", ""
    try:
        if on_cpus:
            listens_at = gloo.listening_address()
        else:
            nccl_interfaces()
    except BadInput as error:
        problem = problem or str(error)
    meeting = None
    with ExitStack() as stack:
        try:
            meeting = Rendezvous(world, limits.seconds)
            stack.callback(meeting.presence.close)
            place = socket.gethostname(), identity(device)
            found = meeting.first_problem(problem, place, options, listens_at)
            if found is None:
                _connect(meeting, world, limits.seconds, on_cpus)
                stack.pop_all()
                limits.add(dist.group.WORLD)
                return JoinedRanks(meeting.presence, limits)
        except (TimeoutError, dist.DistError) as error:
            gone = meeting.presence.missing_ranks() if meeting else ""
            said = [gone] * bool(gone) + [first_line(error)]
            raise RankLost(": ".join(["the ranks did not come together", *said])) from None
    if world.rank in found.ranks:
        raise BadInput(found.text)
    raise OtherRankFailed(2)


def _connect(meeting: Rendezvous, world: World, timeout_s: float, on_cpus: bool) -> None:
    """Make the process group of ranks that have met."""
    if on_cpus:
        if meeting.peer:
            gloo.choose_interface(meeting.peer, speaks=world.local_rank == 0)
        gloo.connect(meeting.store, world, timeout_s, meeting.listeners)
        return
    wait = timedelta(seconds=timeout_s)
    dist.init_process_group("nccl", store=meeting.store, rank=world.rank, world_size=world.size, timeout=wait)


def new_group(ranks: Sequence[int]) -> Subgroup:
    """Make a process group of some of the ranks, in which this one waits as long as in that of all."""
    limits = joined[-1].limits
    made: Subgroup = dist.new_group(list(ranks), timedelta(seconds=limits.seconds))
    limits.add(made)
    return made


def fail_together(problem: str | None, world: World) -> None:
    """End all ranks if one has a problem: the first such rank reports it, the others end without a message.

    Raises:
        BadInput: on the first rank that has a problem.
        OtherRankFailed: on the others.
    """
    problems = gather_texts(problem, world)
    first = next((rank for rank, text in enumerate(problems) if text), None)
    if first is None:
        return
    if first == world.rank:
        raise BadInput(str(problem)) from None
    raise OtherRankFailed(2)


@contextmanager
def failing_together(world: World) -> Iterator[None]:
    """A block after which all ranks end, as in `fail_together`, if BadInput or OSError was raised on one."""
    problem = None
    try:
        yield
    except (BadInput, OSError) as error:
        problem = str(error)
    fail_together(problem, world)


def same_on_all_ranks(what: str, value: str, advice: str, world: World) -> None:
    """End all ranks if a value differs between them; rank 0 names two ranks, their hosts and values.

    Args:
        what, value: what is compared, and its value on this rank.
        advice: what the user can do.
        world: all ranks.

    Raises:
        BadInput: on rank 0.
        OtherRankFailed: on the others.
    """
    found = gather_texts(json.dumps([socket.gethostname(), value]), world)
    told = [(host, value) for host, value in map(json.loads, filter(None, found))]
    fail_together(difference(what, told, advice) if world.is_first else None, world)


def gather_texts(item: str | None, world: World, subgroup: Subgroup = None) -> list[str | None]:
    """Gather one text from every rank, in order of rank."""
    if world.size == 1:
        return [item]
    items: list[str | None] = [None] * world.size
    dist.all_gather_object(items, item, group=subgroup)
    return items


def sum_over_ranks(values: Tensor, world: World, subgroup: Subgroup = None) -> Tensor:
    """Sum a tensor of one shape over the ranks of `world`, in place, and return it."""
    if world.size > 1:
        dist.all_reduce(values, group=subgroup)
    return values


def gather_rows(values: Tensor, world: World, subgroup: Subgroup = None) -> Tensor:
    """Gather the rows of the (n, ...) tensors of all ranks, in order of rank; n may differ between ranks."""
    if world.size == 1:
        return values
    counts = torch.zeros(world.size, dtype=torch.int64, device=values.device)
    counts[world.rank] = len(values)
    dist.all_reduce(counts, group=subgroup)
    padded = values.new_zeros((int(counts.max()), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded, group=subgroup)
    return torch.cat([part[:n] for part, n in zip(parts, counts.tolist(), strict=True)])
