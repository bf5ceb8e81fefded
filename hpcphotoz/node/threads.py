"""The number of threads of a rank, from the cores that its job gives it."""

import os
import sys
from collections.abc import Mapping, MutableMapping

from hpcphotoz.world import World

VARIABLE = "OMP_NUM_THREADS"


def usable_cores() -> int:
    """The number of cores that this process may use."""
    # A batch system gives a job a part of the node; only Linux tells which.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_rank(world: World, env: Mapping[str, str], usable: int) -> int:
    """The number of cores for one rank, at least 1 and never more than this process may use.

    Args:
        world: this rank's place among all ranks.
        env: environment to read.
        usable: the number of cores that this process may use.
    """
    of_task, of_node = _number(env, "SLURM_CPUS_PER_TASK"), _number(env, "SLURM_CPUS_ON_NODE")
    if usable < of_node or (of_task and not of_node):  # srun has bound each task to cores of its own
        return min(of_task or usable, usable)
    # Also with CPUs per task: ranks of mpiexec in a batch script share those of its one task.
    of_rank = max(1, (of_node or usable) // world.local_size)
    return min(of_task or of_rank, of_rank)


def set_threads(world: World, cores: int = 0, env: MutableMapping[str, str] | None = None) -> int:
    """Set OMP_NUM_THREADS, where it is not set, to the number of cores of this rank; returns its value.

    srun does not bind ranks to cores everywhere: on two busy cores, two ranks of two threads took 0.7 s per
    step, of one thread 0.04 s. A process that is alone and outside Slurm keeps the default of torch: 0 is
    returned. torchrun sets the variable itself.

    Args:
        world: this rank's place among all ranks.
        cores: those of this rank, where its launch knows them; 0: `cores_of_rank`.
        env: environment to read and to set; the process's own by default.
    """
    env = os.environ if env is None else env
    if VARIABLE in env or (world.size == 1 and not cores and "SLURM_JOB_ID" not in env):
        return _number(env, VARIABLE)
    usable = usable_cores()
    threads = min(cores, usable) if cores else cores_of_rank(world, env, usable)
    env[VARIABLE] = str(threads)
    if env is os.environ and "torch" in sys.modules:  # it has read the variable already
        sys.modules["torch"].set_num_threads(threads)
    return threads


def _number(env: Mapping[str, str], name: str) -> int:
    """A number of a variable; 0 if it is not set, or no such number."""
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0
