"""Who does what in this run: all ranks the same, or some learners and some attackers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from torch import distributed as dist

from hpcphotoz.config import Config
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.group import Subgroup
from hpcphotoz.training.overlap.partition import RankSplit, attackers_for_costs
from hpcphotoz.world import World

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankRole:
    """A rank's part.

    Attributes:
        world: its place among the ranks that do the same; they share a global batch.
        subgroup: their group; None: all ranks.
        split: who attacks; None: no rank apart.
        weights_group: group of rank 0 and the attackers.
        is_attacker: whether this rank does nothing else.
    """

    world: World
    subgroup: Subgroup = None
    split: RankSplit | None = None
    weights_group: Subgroup = None
    is_attacker: bool = False


def assign_role(
    config: Config, world: World, costs: Callable[[], tuple[float, float]], device: torch.device
) -> RankRole:
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
    overlap = config.overlap
    if overlap.mode != "ranks":
        return RankRole(world)
    if overlap.attackers == "auto":
        attackers_for_costs(world.size, 1, 1)  # refuses one rank before anything is measured
        attack, train = group.sum_over_ranks(torch.tensor(costs(), device=device), world).tolist()
        split = RankSplit(world.size, attackers_for_costs(world.size, attack, train))
        ratio = f"attack : train = {attack / train:.2f} : 1"
        _log.info("%s: %d of %d ranks attack", ratio, split.attackers, world.size)
    else:
        split = RankSplit(world.size, overlap.attackers)
    timeout = timedelta(seconds=config.run.timeout_s)
    weights_group = dist.new_group([0, *split.attacker_ranks], timeout)
    learners = dist.new_group(split.learner_ranks, timeout)
    is_attacker, same_role = split.is_attacker(world.rank), split.same_role(world.rank)
    # NCCL connects a group at the first use of a collective: now, in one order, and by the collective that
    # will be used, not while one end waits for another message.
    byte = torch.zeros(1, device=device)
    if world.rank == 0 or is_attacker:
        dist.broadcast(byte, 0, group=weights_group)
    if not is_attacker:
        dist.all_reduce(byte, group=learners)
    # One node's numbers mean nothing any more: parts are spread over all.
    place = replace(world, rank=same_role.index(world.rank), size=len(same_role), local_rank=0, local_size=1)
    return RankRole(place, None if is_attacker else learners, split, weights_group, is_attacker)
