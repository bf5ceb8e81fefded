"""Environment variables of a launch: inherited ones, those that override it, and visible GPUs."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator

from hpcphotoz.errors import BadInput
from hpcphotoz.world import RANK_NAMES, RANK_PREFIXES

# Variables of the job or launcher inside which a job is submitted: they would change the new job's shape.
_INHERITED = ("SLURM_", "SLURMD_", "SUBMITIT_", *RANK_PREFIXES)
_INHERITED_NAMES = (*RANK_NAMES, "MASTER_ADDR", "MASTER_PORT")
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
# SBATCH_<NAME> overrides the option of the same name in the script, or the one given here.
_SBATCH_NAMES = {
    "NO_REQUEUE": "requeue",
    "TIMELIMIT": "time",
    **dict.fromkeys(("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"), "mem"),
}
# These change the shape of a job also where the script does not set it: GPUs for a job without GPUs.
_SBATCH_SHAPE = (
    *("ARRAY_INX", "CPUS_PER_GPU", "ERROR", "EXPORT", "GPUS", "GPUS_PER_NODE", "GPUS_PER_SOCKET"),
    *("GPUS_PER_TASK", "GRES", "OVERCOMMIT", "TRES_PER_TASK", "WAIT"),
)


def overriding_variables(script: str, env: Collection[str]) -> list[str]:
    """Variables of `env` that would make sbatch, or srun inside the job, override an option of the script."""
    options = set(re.findall(r"^#SBATCH --([a-z0-9-]+)", script, re.MULTILINE))
    found = []
    for name in sorted(env):
        of_sbatch, of_srun = name.removeprefix("SBATCH_"), name.startswith("SRUN_")
        option = _SBATCH_NAMES.get(of_sbatch, of_sbatch.lower().replace("_", "-"))
        if of_srun or (of_sbatch != name and (of_sbatch in _SBATCH_SHAPE or option in options)):
            found.append(name)
    return found


@contextlib.contextmanager
def outside_any_job(further: Collection[str] = ()) -> Iterator[None]:
    """Remove the variables of the surrounding job or launcher, and `further` ones, while the block runs.

    SLURM_CONF and SLURM_CLUSTERS, which name the cluster, stay.
    """
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name in further
        or (name not in _KEPT and (name.startswith(_INHERITED) or name in _INHERITED_NAMES))
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def visible_gpus(wanted: int, given: str | None) -> str | None:
    """The value of CUDA_VISIBLE_DEVICES for the ranks of a local launch; None: leave it unset.

    Args:
        wanted: GPUs to use; 0: all that are visible.
        given: its value in this process: numbers, UUIDs of GPUs or MIG instances, empty, or None.

    Raises:
        BadInput: fewer GPUs than wanted are visible.
    """
    if not wanted:
        return given
    if given is None:
        return ",".join(map(str, range(wanted)))
    names = [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    if wanted > len(names):
        raise BadInput(f"--gpus-per-node {wanted}: CUDA_VISIBLE_DEVICES names {len(names)}")
    return ",".join(names[:wanted])
