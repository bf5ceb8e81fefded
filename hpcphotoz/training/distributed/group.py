"""The process group of a run (gloo on CPUs, NCCL on GPUs), its collectives, and detection of lost ranks."""

import gc
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.output import say
from hpcphotoz.training.distributed import gloo
from hpcphotoz.training.distributed.beats import BeatThread, LastWords
from hpcphotoz.training.distributed.presence import Presence
from hpcphotoz.training.distributed.rank_device import choose_device, identity
from hpcphotoz.training.distributed.rendezvous import Rendezvous
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.world import World

Subgroup = dist.ProcessGroup | None  # some of the ranks; None: all
_log = logging.getLogger(__name__)
_presence: list[Presence] = []  # of the default process group, as long as there is one
_beats: list[BeatThread] = []  # of the run, likewise


class RankLost(Exception):
    """Another rank died or does not answer."""


class OtherRankFailed(SystemExit):
    """Ends this rank without a message, with status 2: another rank reports why the run cannot go on."""


@contextmanager
def process_group(
    world: World, timeout_s: float, options: Mapping[str, str], wanted: str = "auto"
) -> Iterator[torch.device]:
    """Join the other ranks, and leave them at the end; yields this rank's device.

    Args:
        world: this rank's place among all ranks.
        timeout_s: seconds after which waiting for another rank is an error.
        options: name and value of every option that must be the same on all ranks.
        wanted: the device: "auto", "cuda" or "cpu"; see `choose_device`.

    Raises:
        BadInput: several ranks but no address to meet at; no GPU although one was asked for; options that
            differ from those of rank 0.
        OtherRankFailed: another rank has such a problem, and reports it.
        RankLost: not all ranks joined within `timeout_s`.
    """
    device, problem = torch.device("cpu"), None
    try:
        device = choose_device(world, wanted)
    except BadInput as error:
        if world.size == 1:
            raise
        problem = str(error)
    if world.size == 1:
        yield device
        return
    presence = _join(world, timeout_s, options, device, problem)
    _presence.append(presence)
    try:
        yield device
    finally:
        _presence.remove(presence)
        presence.close()
        # Reference cycles hold DistributedDataParallel. Collected after its group, at the end of the
        # interpreter, it aborted one run in 15 ("terminate called without an active exception").
        gc.collect()
        dist.destroy_process_group()


def _join(
    world: World, timeout_s: float, options: Mapping[str, str], device: torch.device, problem: str | None
) -> Presence:
    """Make the process group once every rank is there and has a device of its own."""
    on_cpus, listens_at = device.type == "cpu", ""
    try:
        if on_cpus:
            listens_at = gloo.listening_address()
    except BadInput as error:
        problem = problem or str(error)
    with ExitStack() as stack:
        try:
            meeting = Rendezvous(world, timeout_s)
            stack.callback(meeting.presence.close)
            place = socket.gethostname(), identity(device)
            found = meeting.first_problem(problem, place, options, listens_at)
            if found is None:
                _connect(meeting, world, timeout_s, on_cpus)
                stack.pop_all()
                return meeting.presence
        except (TimeoutError, dist.DistError) as error:
            raise RankLost(f"the ranks did not come together: {first_line(error)}") from None
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


@contextmanager
def detect_lost_ranks(progress_message: Callable[[], str], timeout_s: float) -> Iterator[None]:
    """Turn the transport's error about a lost rank into one clear message.

    On a GPU no call fails: the host waits for the device, and the device for the other rank, until NCCL's own
    watchdog aborts the process. There a thread ends the process with status 1 as soon as `progress_message`,
    which changes with every step, has been the same for `timeout_s`.

    Raises:
        RankLost: a collective or a message failed or took too long.
    """
    on_gpus = dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl"
    with _watchdog(progress_message, timeout_s) if on_gpus else nullcontext():
        try:
            yield
        except RuntimeError as error:
            if not _is_transport(error):
                raise
            raise RankLost(_lost(progress_message(), timeout_s, first_line(error))) from error


def _lost(progress_message: str, timeout_s: float, said: str) -> str:
    lost = f"another rank died, or did not answer for run.timeout_s = {timeout_s:g} s ({said})"
    more = "the newest lines of logs/rank-*.log say more; the same command resumes from the last checkpoint"
    words = LastWords(_beats[-1] if _beats else None)
    missing = [text for presence in _presence if (text := presence.describe_missing(words.about))]
    for presence in _presence:
        presence.leave()
    return ": ".join([progress_message, lost, *missing, *words.hung(), more])


@contextmanager
def beating(run: Path, world: World, timers: Timers, timeout_s: float) -> Iterator[BeatThread]:
    """Send and write the heartbeats of this rank during the block; arguments as `BeatThread`."""
    store = _presence[-1].store if _presence else None
    with BeatThread(run, world, store, timers, timeout_s) as beats:
        _beats.append(beats)
        try:
            yield beats
        finally:
            _beats.remove(beats)


@contextmanager
def _watchdog(progress_message: Callable[[], str], timeout_s: float) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        seen, since = progress_message(), time.monotonic()
        # NCCL's watchdog starts to count later, at the collective: this thread is the first to act.
        while not done.wait(min(1.0, timeout_s / 10)):
            if progress_message() != seen:
                seen, since = progress_message(), time.monotonic()
            elif time.monotonic() - since > timeout_s:
                text = _lost(seen, timeout_s, "the GPU waits for it")
                _log.info("%s", text)
                say(f"hpcphotoz: error: {text}", sys.stderr)
                os._exit(1)  # the main thread is inside CUDA, where no exception reaches it

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_transport(error: RuntimeError) -> bool:
    # gloo's errors have no type of their own; their texts name its source files or the failed connection.
    words = "gloo|Connection closed by peer|Connection reset by peer|Timed out waiting|Socket Timeout"
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words.split("|"))
