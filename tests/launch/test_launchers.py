"""torchrun, mpiexec, srun with and without PMI, and `launch local` start the same training."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcphotoz.config.load import configure, to_toml
from tests.helpers import ranks
from tests.helpers.launch.cluster import Cluster
from tests.helpers.launch.jobs import cluster_or_skip
from tests.helpers.launch.runs import starts
from tests.helpers.training.runs import OPTIONS

RANKS = 4
_BESIDE = Path(sys.executable).with_name("mpiexec")  # where the mpich wheel puts it
MPIEXEC = str(_BESIDE) if _BESIDE.exists() else shutil.which("mpiexec") or "mpiexec"
OURS = [sys.executable, "-m", "hpcphotoz"]
STARTS = {
    "torchrun": [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"),
        *("-m", "hpcphotoz"),
    ],
    "mpiexec": [MPIEXEC, "-n", str(RANKS), *OURS],
    "local": [*OURS, "launch", "local", f"--tasks-per-node={RANKS}", "--cpus-per-task=1", "--"],
    "pmi2": ["srun", "--nodes=2", "--ntasks-per-node=2", "--mpi=pmi2", *OURS],
    "srun": ["srun", "--nodes=2", "--ntasks-per-node=2", "--kill-on-bad-exit=1", *OURS],
}
LAUNCHER = {"torchrun": "torchrun", "mpiexec": "mpich", "local": "local", "pmi2": "mpich", "srun": "slurm"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from cluster_or_skip(preempt_signal=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of adversarial training, the last batch of an epoch a partial one."""
    path = tmp_path_factory.mktemp("recipe") / "config.toml"
    path.write_text(to_toml(configure("test", **{**OPTIONS, "epochs": 2})))
    return path


def started(how: str, recipe: Path, dataset: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """A training of four ranks, to its end; none is told where its ranks meet."""
    words = [*STARTS[how], "train", str(recipe), "--data", str(dataset), "--out", str(out), "--device", "cpu"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    env |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        words, env=env, cwd=out.parent, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_every_launcher_gives_the_same_losses(
    cluster: Cluster, recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    """To the bit: the number of ranks, their order and their threads are the same."""
    curves, missing = {}, [] if shutil.which(MPIEXEC) else ["mpiexec"]
    for how in STARTS.keys() - missing:
        out = tmp_path / how
        done = started(how, recipe, dataset, out)
        assert done.returncode == 0, f"{how}: {done.stderr}\n{done.stdout}"
        (start,) = starts(out)
        assert (start["launcher"], start["world_size"]) == (LAUNCHER[how], RANKS)
        curves[how] = ranks.curve(out)
    assert len(curves["srun"]) == 10
    assert all(curve == curves["srun"] for curve in curves.values()), curves


@pytest.mark.slow
def test_copies_of_a_run_in_one_step_are_refused(
    cluster: Cluster, recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    """torchrun in each task of a step, none of which knows of the other."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    words = ["train", str(recipe), "--data", str(dataset), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run(
        ["srun", "--ntasks=2", *agent, "-m", "hpcphotoz", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode and not (tmp_path / "run").exists()
    assert "torchrun knows of this task alone, SLURM of 2: give it --nnodes" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(MPIEXEC) is None, reason="no mpiexec: pip install mpich")
def test_ranks_that_met_by_mpi_stop_with_75(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """MPI is left again before the training: else mpiexec would kill the others at the first that ends."""
    words = ["train", str(recipe), "--data", str(dataset), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run(
        [MPIEXEC, "-n", "2", *OURS, *words, "--run.wall_minutes", "1e-9"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 75 and "BAD TERMINATION" not in done.stdout + done.stderr
    assert "saved and stopped after step 1" in done.stdout
