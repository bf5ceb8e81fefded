"""A real Slurm: a job that Slurm stops saves, and comes back unless it was cancelled."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hpcphotoz.launch.requeue.record import STOPPED
from tests.helpers.launch.cluster import Cluster, until
from tests.helpers.launch.jobs import (
    PLAN,
    STEPS,
    Curve,
    assert_same_curve,
    cluster_or_skip,
    disturbed_config,
    log,
    requeues,
    resumed_at,
    training,
    wait_for_restart,
    wait_for_steps,
)
from tests.helpers.launch.runs import small, starts, stopped_after

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PREEMPT = "sbatch --parsable --partition high --nodes 2 --exclusive --output /dev/null --wrap true"


def preempted(cluster: Cluster, dataset: Path, run: Path, signal: str, undisturbed: Curve) -> None:
    """Preempt a run by another job, and assert that it still ends with the curve of an unbroken run."""
    submitted = training(cluster, dataset, run, disturbed_config())
    cluster.command(*PREEMPT.split())
    facts = cluster.wait_for(submitted.job_id, "COMPLETED", 300)
    assert facts["Restarts"] == "1"
    (step,) = stopped_after(run, 4)
    assert f"{signal} received: saved and stopped after step {step} of {STEPS}" in log(submitted, 0)
    assert [(start["step"], start["world_size"]) for start in starts(run)] == [(0, 4), (int(step), 4)]
    assert_same_curve(run, undisturbed)
    assert [(entry.step, entry.reason) for entry in requeues(submitted).requeues] == [(int(step), STOPPED)]
    for rank in range(4):
        seen = re.findall(rf"rank {rank} of 4 on .*, code (\S+), restart (\d)", log(submitted, rank))
        assert [restart for _, restart in seen] == ["0", "1"]
        assert {Path(code).parent for code, _ in seen} == {submitted.logs}


def test_a_preempted_job_comes_back(
    cluster: Cluster, dataset: Path, tmp_path: Path, undisturbed: Curve
) -> None:
    preempted(cluster, dataset, tmp_path / "run", "SIGUSR2", undisturbed)


def test_a_job_preempted_by_sigterm_comes_back(undisturbed: Curve, dataset: Path, tmp_path: Path) -> None:
    for other in cluster_or_skip(preempt_signal=False):
        preempted(other, dataset, tmp_path / "run", "SIGTERM", undisturbed)


def test_a_job_out_of_time_saves_and_goes_on_in_a_new_one(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    """One minute is the least limit of Slurm, which then signals between 20 and 80 s before it."""
    run = tmp_path / "run"
    plan = replace(PLAN, time="1", signal_delay_s=5)
    submitted = training(cluster, dataset, run, small(100_000), plan)
    wait_for_restart(cluster, submitted, 1)
    (requeue,) = requeues(submitted).requeues
    assert requeue.step and requeue.reason == STOPPED
    wait_for_steps(cluster, submitted, run, requeue.step)
    assert resumed_at(run) == [0, requeue.step]
    cluster.command("scancel", submitted.job_id)
    until("the end", lambda: cluster.command("squeue", "--noheader") == "", 60)


def test_a_cancelled_job_saves_and_stays_away(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submitted = training(cluster, dataset, run, small(20_000))
    cluster.command("scancel", submitted.job_id)
    until("the end", lambda: cluster.job(submitted.job_id)["JobState"] == "CANCELLED", 60)
    (step,) = stopped_after(run, 4)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{int(step):08d}.pt"]
    assert cluster.job(submitted.job_id)["Restarts"] == "0"
    assert cluster.command("squeue", "--noheader") == ""
