"""A real Slurm of two nodes: runs train to the end, and a batch script of the user's own goes on."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpcphotoz.config.load import to_toml
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.slurm import submit
from tests.helpers.launch.cluster import Cluster, until
from tests.helpers.launch.jobs import PLAN, log, training
from tests.helpers.launch.runs import small, starts, steps_logged, stopped_after

SHELL = {
    "SBATCH_PARTITION": "high",
    "SBATCH_TIMELIMIT": "2",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_JOB_NAME": "theirs",
    "SRUN_EXPORT_ENV": "NONE",
}

# Prints the device that a rank of `srun` chooses where torch sees exactly the GPUs that Slurm shows.
CHOICE = """import os, sys
from types import SimpleNamespace
import torch
from hpcphotoz.training.distributed.rank_device import choose_device, identity
from hpcphotoz.world import detect
shown = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
torch.cuda.device_count = lambda: len(shown)
torch.cuda.set_device = lambda device: None
torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid="GPU " + shown[device.index])
world = detect()
chosen = choose_device(world)
print(world.rank, world.launcher, len(shown), chosen, os.environ["SLURMD_NODENAME"], identity(chosen))
"""


def test_two_nodes_train_to_the_end(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    submitted = training(cluster, dataset, tmp_path / "run", small(10))
    cluster.wait_for(submitted.job_id, "COMPLETED", 60)
    assert steps_logged(tmp_path / "run") == list(range(1, 11))
    assert [start["world_size"] for start in starts(tmp_path / "run")] == [4]
    nodes = [re.findall(r"node=(\d)\(2\)", log(submitted, rank)) for rank in range(4)]
    assert nodes == [["0"], ["0"], ["1"], ["1"]]


# The example of docs/how-to/resume.md.
REQUEUE = """#!/bin/sh
#SBATCH --nodes=2 --ntasks-per-node=2 --requeue --output={folder}/out --open-mode=append
export OMP_NUM_THREADS=1
srun --kill-on-bad-exit=1 {python} -m hpcphotoz {words}
status=$?
[ $status -eq 75 ] && scontrol requeue $SLURM_JOB_ID
exit $status
"""


@pytest.mark.slow
def test_srun_ends_with_75_when_four_ranks_stop_and_a_batch_script_requeues(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    """The budget is spent after one step, so that each start takes one of the two steps."""
    run = tmp_path / "run"
    (tmp_path / "config.toml").write_text(to_toml(small(2)))
    words = f"train {tmp_path}/config.toml --data {dataset} --out {run} --run.wall_minutes 1e-9 --device cpu"
    (tmp_path / "job.sh").write_text(REQUEUE.format(folder=tmp_path, python=sys.executable, words=words))
    job_id = cluster.command("sbatch", "--parsable", str(tmp_path / "job.sh"))

    def ended() -> bool:
        facts = cluster.job(job_id)
        said = (tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""
        assert facts["JobState"] not in ("TIMEOUT", "CANCELLED"), said
        return facts["JobState"] in ("COMPLETED", "FAILED")

    until("two starts", ended, 120)
    said = (tmp_path / "out").read_text()
    facts = cluster.job(job_id)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said
    ends = [(start["world_size"], start["end"]["outcome"]) for start in starts(run)]
    assert ends == [(4, "stopped"), (4, "finished")]
    assert steps_logged(run) == [1, 2] and "Traceback" not in said


@pytest.mark.slow
def test_a_launched_job_whose_budget_is_spent_ends_with_75(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    submitted = submit(PLAN, TrainJob.of(small(9, wall_minutes=1e-9), dataset, tmp_path / "run"))
    facts = cluster.wait_for(submitted.job_id, "FAILED", 120)  # `afterok` jobs do not begin
    assert (facts["ExitCode"], facts["Restarts"]) == ("75:0", "0"), log(submitted, 0)
    assert stopped_after(tmp_path / "run", 4) == {"1"}


@pytest.mark.slow
def test_tasks_with_a_gpu_each_ignore_contradicting_variables_of_the_shell(
    cluster: Cluster, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    plan = replace(PLAN, partition="main", time="30", extra=("gpus-per-task=1",))
    said: list[str] = []
    job = TrainJob.of(small(10), dataset, tmp_path / "run", device="cpu")
    submitted = submit(plan, job, said.append)
    facts = cluster.job(submitted.job_id)
    names = ("Partition", "TimeLimit", "Requeue", "JobName")
    assert [facts[name] for name in names] == ["main", "00:30:00", "1", "hpcphotoz"]
    assert len(said) == 1 and all(name in said[0] for name in SHELL)
    cluster.wait_for(submitted.job_id, "COMPLETED", 120)
    assert steps_logged(tmp_path / "run") == list(range(1, 11))
    (start,) = starts(tmp_path / "run")
    assert (start["launcher"], start["world_size"], start["device"]) == ("slurm", 4, "cpu")


@pytest.mark.slow
def test_a_job_with_gpus_that_torch_does_not_see_fails_and_does_not_train_on_cpus(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, extra=("gpus-per-task=1",))
    submitted = submit(plan, TrainJob.of(small(10), dataset, tmp_path / "run"))
    facts = cluster.wait_for(submitted.job_id, "FAILED", 120)
    assert facts["Restarts"] == "0", "bad input is bad the second time"
    assert "a GPU was asked for" in "".join(log(submitted, rank) for rank in range(4))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("words", "shown"), [("--gpus-per-task=1", 1), ("--gpus-per-node=2", 2)])
def test_ranks_of_srun_have_a_gpu_each(words: str, shown: int, cluster: Cluster) -> None:
    step = ("srun", "--nodes=2", "--ntasks-per-node=2", words, sys.executable, "-c", CHOICE)
    ranks = sorted(line.split(maxsplit=5) for line in cluster.command(*step).splitlines())
    assert [rank[:3] for rank in ranks] == [[str(k), "slurm", str(shown)] for k in range(4)]
    assert len({(node, gpu) for *_, node, gpu in ranks}) == 4


def test_the_interactive_shell_of_salloc_is_one_process(cluster: Cluster) -> None:
    words = ("salloc", "--quiet", "--nodes=1", "--ntasks=4", "srun", "--interactive", "--ntasks=1")
    code = (
        "import os; from hpcphotoz.world import detect; print(os.environ['SLURM_STEP_ID'], detect().launcher)"
    )
    assert cluster.command(*words, sys.executable, "-c", code) == "4294967290 single"
