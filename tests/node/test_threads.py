"""The number of threads of a rank."""

import os
import subprocess
import sys

import pytest

from hpcphotoz.node.threads import cores_of_rank, set_threads, usable_cores
from hpcphotoz.world import World

FOUR = World(1, 8, 1, 4, "slurm")


@pytest.mark.parametrize(
    ("env", "usable", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": "8"}, 64, 8),
        ({"SLURM_CPUS_PER_TASK": "8"}, 4, 4),  # never more than the process may use
        ({}, 64, 16),
        ({}, 3, 1),  # more ranks than cores
        ({"SLURM_CPUS_ON_NODE": "32"}, 64, 8),  # a part of the node that srun does not bind
        ({"SLURM_CPUS_ON_NODE": "32"}, 8, 8),  # bound to cores of its own
        ({"SLURM_CPUS_ON_NODE": "32"}, 32, 8),
        ({"SLURM_CPUS_PER_TASK": "many"}, 64, 16),
        ({"SLURM_CPUS_PER_TASK": "32", "SLURM_CPUS_ON_NODE": "32"}, 32, 8),  # mpiexec in a batch script
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "32"}, 8, 8),
    ],
)
def test_cores_of_a_rank(env: dict[str, str], usable: int, cores: int) -> None:
    assert cores_of_rank(FOUR, env, usable) == cores


def test_the_variable_of_the_user_or_of_torchrun_stays() -> None:
    env = {"OMP_NUM_THREADS": "3", "SLURM_CPUS_PER_TASK": "1"}
    assert set_threads(FOUR, 2, env) == 3 and env["OMP_NUM_THREADS"] == "3"


def test_one_process_outside_slurm_keeps_the_default() -> None:
    env: dict[str, str] = {}
    assert set_threads(World(), env=env) == 0 and not env
    assert set_threads(World(), env={"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}) == 1


def test_cores_that_a_launch_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    env: dict[str, str] = {}
    assert set_threads(FOUR, 1, env) == 1 == int(env["OMP_NUM_THREADS"])
    assert set_threads(FOUR, 10**6, {}) == usable_cores()


@pytest.mark.parametrize("before", [False, True])
def test_torch_takes_the_number(before: bool) -> None:
    """Also where it was imported before, as in a program of the user's."""
    call = "from hpcphotoz.world import World\nfrom hpcphotoz.node.threads import set_threads\n"
    call += "set_threads(World(0, 2, 0, 2), 1)\n"
    code = ["import torch\n", call] if before else [call, "import torch\n"]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = [sys.executable, "-c", "".join(code) + "print(torch.get_num_threads())"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "1"
