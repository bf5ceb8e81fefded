"""Rank and world size are read from the variables of the launcher."""

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.world import World, detect, started_by_srun, tasks_of_allocation

PMI = {"PMI_RANK": "6", "PMI_SIZE": "8"}
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
PALS = {
    "PMI_RANK": "5",
    "PMI_SIZE": "8",
    "PALS_RANKID": "5",
    "PALS_LOCAL_RANKID": "1",
    "PALS_LOCAL_SIZE": "4",
    "SLURM_LOCALID": "0",
}
LOCAL = {
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "3",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_NODEID": "0",
}
STEP = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
ONE_AGENT = {**TORCHRUN, "GROUP_WORLD_SIZE": "1"}  # torchrun on one node
SINGLETON = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("env", "world"),
    [
        (TORCHRUN, World(3, 4, 1, 2, "torchrun")),
        (OPENMPI, World(5, 8, 1, 4, "openmpi")),
        (MPICH, World(1, 2, 1, 2, "mpich")),
        (SLURM, World(6, 8, 2, 4, "slurm")),
        (PALS, World(5, 8, 1, 4, "mpich")),
        ({**PMI, "PMI_LOCAL_RANK": "3", "PMI_LOCAL_SIZE": "4"}, World(6, 8, 3, 4, "mpich")),
        ({**SLURM, **PMI}, World(6, 8, 2, 4, "mpich")),  # srun --mpi=pmi2
        ({**SLURM, "SLURM_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2"}, World(6, 8, 2, 2, "slurm")),
        ({**SLURM, "SLURM_TASKS_PER_NODE": "3,4,1", "SLURM_NODEID": "1"}, World(6, 8, 2, 4, "slurm")),
        (LOCAL, World(1, 3, 1, 3, "local")),
        ({}, World()),
        ({**SLURM, **TORCHRUN}, World(3, 4, 1, 2, "torchrun")),
        ({**SLURM, **OPENMPI}, World(5, 8, 1, 4, "openmpi")),
        # Set in each task: srun bash -c 'RANK=$SLURM_PROCID ...'.
        ({**SLURM, "RANK": "6", "WORLD_SIZE": "8"}, World(6, 8, 2, 4, "torchrun")),
    ],
)
def test_the_launcher_is_detected_from_the_environment(env: dict[str, str], world: World) -> None:
    assert detect(env) == world


def test_a_batch_script_outside_a_step_is_one_process() -> None:
    # sbatch sets SLURM_NTASKS and SLURM_PROCID=0 for the script itself: it would wait for ranks that never
    # come.
    env = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "4(x2)"}
    assert detect(env) == World()


@pytest.mark.parametrize("step", ["4294967290", "4294967291", "4294967292", "4294967293"])
def test_steps_that_srun_did_not_start_are_one_process(step: str) -> None:
    """salloc's interactive shell (4294967290), the batch script and the others."""
    assert detect({**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_ID": step}) == World()


@pytest.mark.parametrize(
    "step", [{}, {"SLURM_STEP_ID": "4294967290"}, {"SLURM_STEP_NUM_TASKS": "1"}], ids=str
)
def test_mpiexec_of_one_process_in_a_larger_job(step: dict[str, str]) -> None:
    job = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", **({"SLURM_STEP_ID": "0"} if step else {})}
    assert detect({**job, **SINGLETON, **step}) == World(launcher="openmpi")


@pytest.mark.parametrize(
    "env",
    [
        {**TORCHRUN, "RANK": "4"},
        {**TORCHRUN, "RANK": "one"},
        {**SINGLETON, "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"},
        {**SINGLETON, "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"},
        {**SLURM, "SLURM_TASKS_PER_NODE": "four"},
        # Each task of a step would train the whole run.
        {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"},  # without SLURM_NTASKS
        {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"},
        {**STEP, **ONE_AGENT, "TORCHELASTIC_RUN_ID": "none"},
        {**STEP, **ONE_AGENT, "TORCHELASTIC_RUN_ID": "0a1b2c3d-0000-4000-8000-0123456789ab"},
        {**STEP, "PMIX_RANK": "0", "PMIX_SIZE": "1"},
        {**STEP, "PMI_RANK": "0", "PMI_SIZE": "1"},
        # Exported by the batch script: the same for every task.
        {**STEP, "RANK": "0", "WORLD_SIZE": "1"},
        {**STEP, "RANK": "0", "WORLD_SIZE": "2"},
    ],
)
def test_contradictions_are_errors(env: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        detect(env)


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({**SINGLETON, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "abc"}, "SLURM_NTASKS"),
        ({**SINGLETON, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS"),
        ({**SLURM, "SLURM_NODEID": "-5"}, "SLURM_NODEID"),
        ({**SLURM, "SLURM_LOCALID": "x"}, "SLURM_LOCALID"),
        ({**SLURM, "SLURM_TASKS_PER_NODE": "4(x2"}, "SLURM_TASKS_PER_NODE"),
        ({**SLURM, "SLURM_TASKS_PER_NODE": "-4"}, "SLURM_TASKS_PER_NODE"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "-3"}, "LOCAL_WORLD_SIZE"),
        ({**TORCHRUN, "LOCAL_RANK": "\u0661"}, "LOCAL_RANK"),
        ({**TORCHRUN, "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE"),
    ],
)
def test_a_variable_that_is_no_number_is_named(env: dict[str, str], name: str) -> None:
    with pytest.raises(BadInput, match=f"^{name}="):
        detect(env)


def test_tasks_on_very_many_nodes() -> None:
    env = {**SLURM, "SLURM_TASKS_PER_NODE": "4(x999999999),2", "SLURM_NODEID": "999999999"}
    assert detect(env).local_size == 2


@pytest.mark.parametrize(
    "env",
    [
        ONE_AGENT,
        {**ONE_AGENT, "TORCHELASTIC_RUN_ID": "none"},  # in a batch script, or without Slurm
        {**STEP, **TORCHRUN, "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
        {**STEP, **ONE_AGENT, "TORCHELASTIC_RUN_ID": "e"},  # elastic: the other host comes later
        {**STEP, "SLURM_NTASKS": "1", **ONE_AGENT, "TORCHELASTIC_RUN_ID": "none"},
    ],
)
def test_torchrun_in_a_step(env: dict[str, str]) -> None:
    assert detect(env) == World(3, 4, 1, 2, "torchrun")


def test_mpirun_in_an_allocation() -> None:
    """Its processes inherit the variables of the shell of salloc, whose SLURM_PROCID is 0 for all."""
    shell = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert detect({**shell, **MPICH}) == World(1, 2, 1, 2, "mpich")
    # Those of hydra are in the step by which it starts one proxy on each node.
    assert detect({**shell, **MPICH, "SLURM_STEP_ID": "0"}) == World(1, 2, 1, 2, "mpich")


@pytest.mark.parametrize(
    ("env", "by_srun"),
    [
        (SLURM, True),
        ({**SLURM, **PMI}, True),  # srun --mpi=pmi2
        ({**SLURM, "PMIX_RANK": "6", "PMIX_SIZE": "8"}, True),
        ({**SLURM, **MPICH}, False),  # a proxy of hydra
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", **MPICH}, False),
        ({**SLURM, **OPENMPI, "OMPI_COMM_WORLD_RANK": "6"}, False),  # a daemon of mpirun on each node
        ({**SLURM, **TORCHRUN}, False),
        (LOCAL, False),
        ({}, False),
    ],
)
def test_ranks_that_srun_has_started(env: dict[str, str], by_srun: bool) -> None:
    assert started_by_srun(detect(env), env) == by_srun


def test_tasks_of_an_allocation() -> None:
    assert tasks_of_allocation({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}) == 8
    assert tasks_of_allocation({"SLURM_JOB_ID": "7"}) == tasks_of_allocation({"SLURM_NTASKS": "8"}) == 1
