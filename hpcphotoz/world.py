"""Who am I among how many: the only reader of RANK, OMPI_*, PMI_* and SLURM_* variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hpcphotoz.errors import BadInput

# Order matters: inside `mpirun` in a SLURM allocation SLURM_PROCID is the batch step's, hence wrong.
_LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    (
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("pmix", "PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE"),
    ("mpich", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_TASKS_PER_NODE"),
)


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`, `local_rank` of `local_size` on its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "single"

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.size):
            raise BadInput(
                f"rank {self.rank} (local {self.local_rank}) of a world of {self.size} given by "
                f"{self.launcher}: check that the launcher sets rank and size together"
            )

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0


def detect(env: Mapping[str, str] | None = None) -> World:
    """Read this process's rank from the launcher's variables: torchrun, Open MPI, PMIx, MPICH, SLURM, single.

    Args:
        env: environment to read; the process's own by default.

    Raises:
        BadInput: the variables contradict each other, or an MPI singleton runs inside a larger SLURM step.
    """
    env = os.environ if env is None else env
    for launcher, rank, size, local_rank, local_size in _LAUNCHERS:
        if rank not in env or size not in env:
            continue
        # A batch script outside `srun` has SLURM_NTASKS too, and would wait for ranks that never come.
        if launcher == "slurm" and env.get("SLURM_STEP_ID", "batch") in ("batch", "4294967291"):
            continue
        # SLURM_TASKS_PER_NODE reads "2(x3),1": the first figure is this kind's usual count.
        local = env.get(local_size, "1").split("(")[0].split(",")[0]
        try:
            world = World(
                int(env[rank]),
                int(env[size]),
                int(env.get(local_rank, env.get("SLURM_LOCALID", 0))),
                int(local),
                launcher,
            )
        except ValueError as error:
            raise BadInput(f"{launcher} gives {rank}={env[rank]!r}, {size}={env[size]!r}: {error}") from None
        # Open MPI under a srun without PMI becomes N singletons that would each train the whole run.
        if (
            launcher in ("openmpi", "pmix", "mpich")
            and world.size == 1
            and int(env.get("SLURM_NTASKS", 1)) > 1
        ):
            raise BadInput(
                f"{launcher} sees one process, SLURM {env['SLURM_NTASKS']}: start it with "
                "`srun --mpi=pmix` (or pmi2), or with `hpcphotoz launch slurm`"
            )
        return world
    return World()
