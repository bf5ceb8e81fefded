"""Ranks are read from whatever launcher started the process."""

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.world import World, detect

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_PROCID": "6",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "2",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_ID": "0",
}


@pytest.mark.parametrize(
    ("env", "world"),
    [
        (TORCHRUN, World(3, 4, 1, 2, "torchrun")),
        (OPENMPI, World(5, 8, 1, 4, "openmpi")),
        (MPICH, World(1, 2, 1, 2, "mpich")),
        (SLURM, World(6, 8, 2, 4, "slurm")),
        ({}, World()),
        ({**SLURM, **TORCHRUN}, World(3, 4, 1, 2, "torchrun")),
        ({**SLURM, **OPENMPI}, World(5, 8, 1, 4, "openmpi")),
    ],
)
def test_detect(env: dict[str, str], world: World) -> None:
    assert detect(env) == world


def test_a_batch_script_outside_a_step_is_one_process() -> None:
    # sbatch sets SLURM_NTASKS and SLURM_PROCID=0 for the script itself: it would wait for ranks that never
    # come.
    env = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "4(x2)"}
    assert detect(env) == World()


@pytest.mark.parametrize(
    "env",
    [
        {**TORCHRUN, "RANK": "4"},
        {**TORCHRUN, "RANK": "one"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "SLURM_NTASKS": "4"},
    ],
)
def test_contradictions_are_errors(env: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        detect(env)
