"""Who does what in this run: all ranks the same, or some learners and some attackers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from torch import distributed as dist

from hpcphotoz.config import Config
from hpcphotoz.training import group
from hpcphotoz.training.group import Among
from hpcphotoz.training.roles import Split, nearest
from hpcphotoz.world import World

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cast:
    """A rank's part.

    Attributes:
        world: its place among the ranks that do the same; they share a global batch.
        among: their group; None: all ranks.
        split: who attacks; None: no rank apart.
        weights: group of rank 0 and the attackers.
        attacks: whether this rank does nothing else.
    """

    world: World
    among: Among = None
    split: Split | None = None
    weights: Among = None
    attacks: bool = False


def cast(
    config: Config, world: World, costs: Callable[[], tuple[float, float]], device: torch.device
) -> Cast:
    """Give this rank its part.

    Args:
        config: overlap, attackers.
        world: all ranks.
        costs: seconds that this rank takes to attack, and to train, a stretch of objects; asked for where
            `attackers` is "auto".
        device: for the agreement.

    Raises:
        BadInput: fewer than two ranks, or none that learns or none that attacks.
    """
    training = config.training
    if training.overlap != "ranks":
        return Cast(world)
    if training.attackers == "auto":
        nearest(world.size, 1, 1)  # refuses one rank before anything is measured
        attack, train = group.add_up(torch.tensor(costs(), device=device), world).tolist()
        split = Split(world.size, nearest(world.size, attack, train))
        ratio = f"attack : train = {attack / train:.2f} : 1"
        _log.info("%s: %d of %d ranks attack", ratio, split.attackers, world.size)
    else:
        split = Split(world.size, training.attackers)
    timeout = timedelta(seconds=training.timeout_s)
    weights = dist.new_group([0, *split.attacking], timeout)
    learners = dist.new_group(split.learning, timeout)
    attacks, kind = split.attacks(world.rank), split.kind(world.rank)
    # NCCL connects a group at the first use of a collective: now, in one order, and by the collective that
    # will be used, not while one end waits for another message.
    byte = torch.zeros(1, device=device)
    if world.rank == 0 or attacks:
        dist.broadcast(byte, 0, group=weights)
    if not attacks:
        dist.all_reduce(byte, group=learners)
    # One node's numbers mean nothing any more: parts are spread over all.
    place = replace(world, rank=kind.index(world.rank), size=len(kind), local_rank=0, local_size=1)
    return Cast(place, None if attacks else learners, split, weights, attacks)
