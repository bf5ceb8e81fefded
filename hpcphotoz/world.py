"""Rank and number of ranks of this process: the only reader of RANK, OMPI_*, PMI_*, PALS_*, SLURM_*."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hpcphotoz.errors import BadInput

_Env = Mapping[str, str]

# Launcher, then its variables of: rank, number of ranks, rank on the node, ranks on the node. The order
# matters: inside `mpirun` in a SLURM allocation SLURM_PROCID is that of the batch step, not of this process.
_LAUNCHERS: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("torchrun", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",)),
    (
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    ("pmix", "PMIX_RANK", "PMIX_SIZE", ("PMIX_LOCAL_RANK",), ("PMIX_LOCAL_SIZE",)),
    (
        "mpich",
        "PMI_RANK",
        "PMI_SIZE",
        ("MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
        ("MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
    ),
    (
        "local",  # `hpcphotoz launch local`
        "SUBMITIT_LOCAL_GLOBALID",
        "SUBMITIT_LOCAL_NTASKS",
        ("SUBMITIT_LOCAL_LOCALID",),
        ("SUBMITIT_LOCAL_NTASKS",),
    ),
    ("slurm", "SLURM_PROCID", "SLURM_NTASKS", (), ()),
)
MPI = ("openmpi", "pmix", "mpich")  # launchers whose ranks MPI connects
# Variables that give a process its rank; a process that it starts inherits them.
RANK_PREFIXES = ("OMPI_", "PMI_", "PMIX_", "PALS_", "MPI_LOCAL", "SUBMITIT_LOCAL_")
RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

# Steps that `srun` did not start (batch script, interactive step of salloc, ...) have numbers from here on.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # `torchrun --standalone` draws one
_TASKS = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")  # tasks per node, and number of such nodes


@dataclass(frozen=True)
class World:
    """Place of this process among all: `rank` of `size`, and on its node `local_rank` of `local_size`."""

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
        """Whether this is rank 0, which writes."""
        return self.rank == 0


def detect(env: _Env | None = None) -> World:
    """Read the rank of this process from the variables of its launcher.

    The first launcher found counts: torchrun, Open MPI, PMIx, MPICH (PALS, Intel), `hpcphotoz launch local`,
    SLURM. Without any, the process is alone.

    Args:
        env: environment to read; the process's own by default.

    Raises:
        BadInput: a variable is not a number, variables contradict each other, or each task of a SLURM step
            is an MPI world of its own.
    """
    env = os.environ if env is None else env
    for launcher, rank, size, local_ranks, local_sizes in _LAUNCHERS:
        if rank not in env or size not in env:
            continue
        # A batch script outside `srun` has SLURM_NTASKS too; it would wait for ranks that nobody starts.
        if launcher == "slurm" and not _in_slurm_step(env):
            continue
        local = _first(env, local_ranks), _first(env, local_sizes)
        if None in local and _is_slurm_task(env, env[rank], env[size]):
            local = _number(env, "SLURM_LOCALID", 0), _tasks_on_this_node(env)
        world = World(_number(env, rank), _number(env, size), local[0] or 0, local[1] or 1, launcher)
        if launcher == "torchrun" and not under_torchrun(env):
            _refuse_rank_of_other_task(env, world)
        elif _is_whole_world(env, world):
            _refuse_copies(env, launcher)
        return world
    _refuse_copies(env, "no launcher")
    return World()


def started_by_srun(world: World, env: _Env | None = None) -> bool:
    """Whether the ranks are the tasks of one step of `srun`, with or without an MPI that connects them.

    Not Open MPI's `mpirun`, which starts its daemons by `srun`: a rank inherits the daemon's number there.

    Args:
        world: as `detect` gave it.
        env: environment to read; the process's own by default.
    """
    env = os.environ if env is None else env
    if world.launcher in ("pmix", "mpich"):
        return _is_slurm_task(env, str(world.rank), str(world.size))
    return world.launcher == "slurm"


def tasks_of_allocation(env: _Env | None = None) -> int:
    """The number of tasks of the SLURM allocation around this process; 1: none, or it is not known."""
    env = os.environ if env is None else env
    return _number(env, "SLURM_NTASKS", 1) if "SLURM_JOB_ID" in env and env.get("SLURM_NTASKS") else 1


def _is_whole_world(env: _Env, world: World) -> bool:
    """Whether the ranks of this process's task are a world without those of other tasks of the step."""
    if world.launcher in MPI:
        return world.size == 1
    # Elastic torchrun has an id from its user, and may lack a host for a while.
    own_id = _UUID.fullmatch(env.get("TORCHELASTIC_RUN_ID", "")) or env.get("TORCHELASTIC_RUN_ID") == "none"
    return world.launcher == "torchrun" and env.get("GROUP_WORLD_SIZE") == "1" and bool(own_id)


def _refuse_rank_of_other_task(env: _Env, world: World) -> None:
    """Refuse RANK and WORLD_SIZE that a task of a SLURM step has inherited, where its tasks have others.

    A batch script that exports them gives every task the same: all would be rank 0, or a world of their own.

    Raises:
        BadInput: the step has several tasks, and this one is not the rank that the variables say.
    """
    if not _in_slurm_step(env) or (tasks := _tasks_of_step(env)) < 2 or world.size not in (1, tasks):
        return
    if (task := _number(env, "SLURM_PROCID", world.rank)) != world.rank or world.size == 1:
        raise BadInput(
            f"RANK={world.rank}, WORLD_SIZE={world.size} in task {task} of a SLURM step of {tasks}: exported "
            "before srun, they are the same for all tasks: unset them, SLURM gives each task its rank"
        )


def _refuse_copies(env: _Env, launcher: str) -> None:
    """Refuse a process of a SLURM step whose other tasks it does not see: each would train the whole run.

    Under an `srun` without PMI, Open MPI becomes N worlds of one rank; so does `srun torchrun --standalone`.
    (`mpiexec -n 1` in a batch script is one process, however many tasks the job has.)

    Raises:
        BadInput: the step has several tasks.
    """
    if not _in_slurm_step(env):
        return
    if (tasks := _tasks_of_step(env)) < 2:
        return
    if launcher == "torchrun":
        raise BadInput(
            f"torchrun knows of this task alone, SLURM of {tasks}: give it --nnodes, --rdzv-backend c10d and "
            "--rdzv-endpoint FIRST_NODE:29500, or leave it out: srun starts the ranks"
        )
    raise BadInput(
        f"{launcher} sees one process, SLURM {tasks}: start it with `srun --mpi=pmix` (or pmi2), or with "
        "`hpcphotoz launch slurm`"
    )


def _tasks_of_step(env: _Env) -> int:
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    return _number(env, name, 1)


def under_torchrun(env: _Env | None = None) -> bool:
    """Whether torchrun watches this process: it takes every status but 0 for a failure, and may restart."""
    return "TORCHELASTIC_RUN_ID" in (os.environ if env is None else env)


def _number(env: _Env, name: str, otherwise: int | None = None) -> int:
    """The number in a variable; `otherwise` if it is not set.

    Raises:
        BadInput: the value is not a whole number of 0 or more.
    """
    text = env[name] if otherwise is None else env.get(name, str(otherwise))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadInput(f"{name}={text!r}: want a whole number of 0 or more: check what the launcher sets")
    return int(text)


def _first(env: _Env, names: tuple[str, ...]) -> int | None:
    return next((_number(env, name) for name in names if name in env), None)


def _in_slurm_step(env: _Env) -> bool:
    """Whether `srun` started this process as a task of a step."""
    step = env.get("SLURM_STEP_ID", "batch")
    return step.isascii() and step.isdigit() and len(step) < 20 and int(step) < _FIRST_SPECIAL_STEP


def _is_slurm_task(env: _Env, rank: str, size: str) -> bool:
    """Whether SLURM gives the same rank as the launcher: under `srun --mpi=pmi2`, but not in `mpirun`."""
    return _in_slurm_step(env) and (env.get("SLURM_PROCID"), env.get("SLURM_NTASKS")) == (rank, size)


def _tasks_on_this_node(env: _Env) -> int:
    """From SLURM_TASKS_PER_NODE, for example "2(x3),1": two on each of three nodes, one on the last."""
    name = "SLURM_STEP_TASKS_PER_NODE" if "SLURM_STEP_TASKS_PER_NODE" in env else "SLURM_TASKS_PER_NODE"
    node, tasks = _number(env, "SLURM_NODEID", 0), 1
    for part in env.get(name, "1").split(","):
        if (found := _TASKS.fullmatch(part.strip())) is None:
            raise BadInput(f'{name}={env[name]!r}: want numbers of tasks, such as "2(x3),1"')
        tasks, node = int(found[1]), node - int(found[2] or 1)
        if node < 0:
            break
    return tasks
