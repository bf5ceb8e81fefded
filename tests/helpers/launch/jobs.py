"""Jobs of a real Slurm for tests: submit a run of four ranks on two nodes, read its logs, kill its ranks."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcphotoz.config import Config
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.launch.requeue.record import RequeueRecord, record_file
from hpcphotoz.launch.slurm import SubmittedJob, submit
from tests.helpers import ranks
from tests.helpers.launch.cluster import ENDED, Cluster, missing, until
from tests.helpers.launch.runs import small, starts, steps_logged

Curve = list[tuple[int, float]]  # step and loss
PLAN = LaunchPlan(nodes=2, tasks_per_node=2, cpus_per_task=1)
STEPS, EVERY = 160, 20  # of the runs that are disturbed, and between their checkpoints


def cluster_or_skip(preempt_signal: bool = True, conf: str = "") -> Iterator[Cluster]:
    """The cluster; skips where it cannot run, and fails there with HPCPHOTOZ_REQUIRE_SLURM=1."""
    if reason := missing():
        if os.environ.get("HPCPHOTOZ_REQUIRE_SLURM") == "1":
            pytest.fail(f"no Slurm, though HPCPHOTOZ_REQUIRE_SLURM=1: {reason}")
        pytest.skip(f"no Slurm: {reason}")
    with Cluster(preempt_signal, conf) as cluster:
        yield cluster


def disturbed_config() -> Config:
    """A run of which the tests compare the curve with that of the same run, left alone."""
    return small(STEPS, checkpoint_steps=EVERY, precision="fp32", deterministic=True)


def training(
    cluster: Cluster, dataset: Path, run: Path, config: Config, plan: LaunchPlan = PLAN, steps: int = 3
) -> SubmittedJob:
    """Submit a run, by default of four ranks on two nodes, and wait until it has taken more than `steps`."""
    submitted = submit(plan, TrainJob.of(config, dataset, run))
    wait_for_steps(cluster, submitted, run, steps)
    return submitted


def wait_for_steps(cluster: Cluster, submitted: SubmittedJob, run: Path, steps: int) -> None:
    """Poll until a run has taken more than `steps` in its present start; fails when the job has ended."""

    def trains() -> bool:
        state = cluster.job(submitted.job_id)["JobState"]
        assert state not in ENDED, f"{state}: {log(submitted, 0)}"
        return state == "RUNNING" and max(steps_logged(run), default=0) > steps

    until(f"step {steps}", trains, 300)


def kill_rank(submitted: SubmittedJob, rank: int, restart: int) -> None:
    """Kill a rank of a start with no warning; Slurm's nodes are this machine."""
    wanted = {f"SLURM_JOB_ID={submitted.job_id}", f"SLURM_PROCID={rank}"}
    wanted |= {f"SLURM_RESTART_COUNT={restart}"} if restart else set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            if wanted <= set(words) and b"submitit" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                return
    raise AssertionError(f"no process of rank {rank} in start {restart}: {log(submitted, rank)}")


def log(submitted: SubmittedJob, rank: int) -> str:
    """Output of one rank so far."""
    path = submitted.logs / f"{submitted.job_id}_{rank}_log.out"
    return path.read_text() if path.exists() else ""


def requeues(submitted: SubmittedJob) -> RequeueRecord:
    """The recorded requeues of a job."""
    return RequeueRecord.read(record_file(submitted.logs.parent, submitted.job_id))


def assert_same_curve(run: Path, undisturbed: Curve) -> None:
    """Assert that a run has every step once, with the losses of another to the bit (both deterministic)."""
    found = ranks.curve(run)
    assert [step for step, _ in found] == [step for step, _ in undisturbed]
    differing = [step for (step, loss), (_, other) in zip(found, undisturbed, strict=True) if loss != other]
    assert not differing, f"first at step {differing[0]}"


def wait_for_restart(cluster: Cluster, submitted: SubmittedJob, restart: int) -> None:
    """Poll until a job was requeued `restart` times; fails when it has ended."""

    def came() -> bool:
        facts = cluster.job(submitted.job_id)
        assert facts["JobState"] not in ENDED, log(submitted, 0)
        return facts["Restarts"] == str(restart)

    until(f"restart {restart}", came, 180)


def resumed_at(run: Path) -> list[int]:
    """The step at which each start of a run began."""
    return [start["step"] for start in starts(run)]
