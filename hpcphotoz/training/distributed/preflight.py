"""Checks once all ranks have joined, before anything is read: a sum over all ranks, clocks, installations."""

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import distributed as dist

import hpcphotoz
from hpcphotoz.config import Config
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.node import interfaces
from hpcphotoz.output import say
from hpcphotoz.training.distributed import gloo
from hpcphotoz.training.monitoring.lost_ranks import RankLost
from hpcphotoz.world import World

_ROUNDS = 3
_CLOCKS_APART_S = 1.0  # from which a warning is printed
_NAMED = 8


@cache
def installation() -> dict[str, str]:
    """What must be installed alike on all hosts: hpcphotoz, with a hash of its source files, and torch."""
    root, hashed = Path(hpcphotoz.__file__).parent, hashlib.sha256()
    # `rglob` does not follow the links to kernels and launch.
    for folder in (root, root / "kernels", root / "launch"):
        for path in sorted(folder.rglob("*.py")):
            hashed.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    code = f"{hpcphotoz.__version__}, files {hashed.hexdigest()[:12]}"
    return {"hpcphotoz": code, "torch": torch.__version__}


def options_of_all_ranks(
    config: Config, data: Datasets, out: Path, device: str, start_from: Path | None, stage: str | None
) -> dict[str, str]:
    """Options that must be the same on all ranks, by name."""
    # Not `resolve`: links may differ between nodes.
    values = {"--out": repr(str(out.absolute())), "--data": repr(str(data.absolute())), "--device": device}
    values["--from"] = repr(str(start_from.absolute()) if start_from else None)
    values["--stage"] = repr(stage)
    for section, options in config.model_dump().items():
        values |= {f"--{section}.{key}": repr(value) for key, value in options.items()}
    return values


def check_ranks(world: World, device: torch.device, hosts: Sequence[str]) -> float:
    """Sum over all ranks, check the sum, and compare clocks; rank 0 prints which ranks are where.

    A sum that is wrong, with a broken driver or network, would be a wrong gradient in every step.

    Args:
        world, device: this rank's place among all ranks, and where its collectives run.
        hosts: names of the hosts of all ranks, in order.

    Returns:
        Seconds by which the clock of this host is ahead of that of rank 0's.

    Raises:
        RankLost: the sum is wrong.
    """
    ahead: list[list[float]] = []
    clock = 0.0
    for _ in range(_ROUNDS + 1):
        # All ranks leave a sum at the same time; the next one tells the others when that was.
        sums = torch.zeros(world.size + 1, dtype=torch.float64, device=device)
        sums[world.rank], sums[-1] = clock, world.rank + 1
        dist.all_reduce(sums)
        *clocks, total = sums.tolist()
        clock = time.time()
        if total != world.size * (world.size + 1) / 2:
            raise RankLost(
                f"the sum of 1 to {world.size} over all ranks is {total:g}, seen by rank {world.rank} on "
                f"{hosts[world.rank]}: look at the driver and the network between the hosts"
            )
        ahead.append([each - clocks[0] for each in clocks])
    # Of the first sum no clocks are known. Of the others, the least difference: a rank may be woken late.
    least = [min(seen, key=abs) for seen in zip(*ahead[1:], strict=True)]
    if world.is_first:
        say(f"{topology(hosts)}: {_backend(device)}, started by {world.launcher}")
        if text := clocks_apart(least, hosts):
            say(f"hpcphotoz: warning: {text}", sys.stderr)
    return float(least[world.rank])


def _backend(device: torch.device) -> str:
    """What connects the ranks, on which devices and network interfaces, in words."""
    on_cpus = device.type == "cpu"
    text = "gloo on CPUs" if on_cpus else f"NCCL on {torch.cuda.get_device_name(device)}, one a rank"
    chosen = os.environ.get(gloo.VARIABLE if on_cpus else interfaces.VARIABLE, "")
    return f"{text}, network interface {chosen}" if chosen else text


def topology(hosts: Sequence[str]) -> str:
    """Which ranks are on which hosts, as in "3 ranks on 2 hosts (node0: 0-1, node1: 2)".

    Args:
        hosts: names of the hosts of all ranks, in order.
    """
    of_host: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        of_host.setdefault(host, []).append(rank)
    named = [f"{host}: {_ranges(ranks)}" for host, ranks in list(of_host.items())[:_NAMED]]
    more = ", ..." if len(of_host) > _NAMED else ""
    return f"{len(hosts)} ranks on {len(of_host)} host{'s' * (len(of_host) > 1)} ({', '.join(named)}{more})"


def clocks_apart(ahead: Sequence[float], hosts: Sequence[str]) -> str:
    """A warning about hosts whose clock differs by more than a second from that of rank 0's; "": none does.

    Args:
        ahead: seconds by which the clock of each rank's host is ahead.
        hosts: names of the hosts of all ranks, in order.
    """
    of_host: dict[str, list[float]] = {}
    for seconds, host in zip(ahead, hosts, strict=True):
        of_host.setdefault(host, []).append(seconds)
    apart = {host: statistics.median(each) for host, each in of_host.items()}
    named = [
        f"{host} is {abs(seconds):.1f} s {'ahead' if seconds > 0 else 'behind'}"
        for host, seconds in apart.items()
        if abs(seconds) > _CLOCKS_APART_S
    ]
    if not named:
        return ""
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"clocks differ from that of {hosts[0]}: {', '.join(named[:_NAMED])}{more}: times in logs do too"


def difference(what: str, told: Sequence[tuple[str, str]], advice: str) -> str | None:
    """A message on the first rank whose value is not that of rank 0; None: all are the same.

    Args:
        what: what is compared.
        told: host and value of all ranks, in order.
        advice: what the user can do.
    """
    host, value = told[0]
    for rank, (other, found) in enumerate(told):
        if found != value:
            return (
                f"{what} is not the same on all ranks: rank {rank} on {other} has {found}, rank 0 on {host} "
                f"has {value}: {advice}"
            )
    return None


def merged(options: Mapping[str, str], first: Sequence[str]) -> dict[str, str]:
    """Options and installation of this rank, in the order in which they are compared.

    Args:
        options: name and value of every option.
        first: names of the options that are compared before the installation.
    """
    before = {name: options[name] for name in first if name in options}
    return {**before, **installation(), **options}


def _ranges(ranks: Sequence[int]) -> str:
    """As in "0-3, 8": runs of consecutive numbers."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
