"""Assigns each rank its role: all ranks train, or some are learners and some are attackers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import distributed as dist

from hpcphotoz.config import Config
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.group import Subgroup
from hpcphotoz.training.overlap.topology import RankSplit, attackers_for_costs
from hpcphotoz.world import World

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankRole:
    """The role of a rank, and the process groups in which it takes part."""

    world: World  # this rank's place among those with its role, which divide a global batch
    subgroup: Subgroup = None  # process group of the learners; None: all ranks
    split: RankSplit | None = None  # which ranks attack; None: every rank attacks and trains
    weights_group: Subgroup = None  # process group of rank 0 and the attackers
    is_attacker: bool = False  # whether this rank only attacks

    @property
    def name(self) -> str:
        """ "attacker" or "learner"; "rank": every rank attacks and trains."""
        return ("attacker" if self.is_attacker else "learner") if self.split else "rank"


def assign_role(
    config: Config, world: World, costs: Callable[[], tuple[float, float]], device: torch.device
) -> RankRole:
    """Decide whether this rank is a learner or an attacker, and create the process groups.

    Args:
        config, world: the options, and all ranks.
        costs: measures the seconds that this rank takes to attack a rank batch, and to train on it; called if
            `overlap.attackers` is "auto".
        device: device of the collectives.

    Raises:
        BadInput: fewer than two ranks, or a split without learners or without attackers.
    """
    overlap = config.overlap
    if overlap.mode != "ranks":
        return RankRole(world)
    if overlap.attackers == "auto":
        attackers_for_costs(world.size, 1, 1)  # refuses a single rank before anything is measured
        attack, train = group.sum_over_ranks(torch.tensor(costs(), device=device), world).tolist()
        split = RankSplit(world.size, attackers_for_costs(world.size, attack, train))
        ratio = f"attack : train = {attack / train:.2f} : 1"
        _log.info("%s: %d of %d ranks attack", ratio, split.attackers, world.size)
    else:
        split = RankSplit(world.size, overlap.attackers)
    weights_group = group.new_group([0, *split.attacker_ranks])
    learners = group.new_group(split.learner_ranks)
    is_attacker, same_role = split.is_attacker(world.rank), split.same_role(world.rank)
    # NCCL connects a group at the first use of each collective. This happens now, in the same order on all
    # ranks and with the collectives that are used later: between steps, one end may wait for another message.
    byte = torch.zeros(1, device=device)
    if world.rank == 0 or is_attacker:
        dist.broadcast(byte, 0, group=weights_group)
    if not is_attacker:
        dist.all_reduce(byte, group=learners)
    # Local ranks are dropped: learners and attackers are spread over all nodes.
    place = replace(world, rank=same_role.index(world.rank), size=len(same_role), local_rank=0, local_size=1)
    return RankRole(place, None if is_attacker else learners, split, weights_group, is_attacker)
