"""Prepares a rank for its node before torch is imported: threads and caches."""

from hpcphotoz.node.caches import use_local_caches
from hpcphotoz.node.threads import set_threads
from hpcphotoz.world import World


def prepare_rank(world: World, cores: int = 0) -> None:
    """Set the number of threads and the caches of compiled code, where the user has not.

    Args:
        world: this rank's place among all ranks.
        cores: those of this rank, where its launch knows them; 0: as the job says.
    """
    set_threads(world, cores)
    use_local_caches(world)
