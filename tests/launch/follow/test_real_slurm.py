"""On a real Slurm `status` tells pending, running, requeued and finished in turn; `cancel` saves and ends."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.heartbeat import read_heartbeat
from hpcphotoz.launch.follow.status import RunStatus, read_status
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.slurm import submit
from tests.helpers.launch.cluster import Cluster, until
from tests.helpers.launch.jobs import PLAN, cluster_or_skip
from tests.helpers.launch.runs import small, stopped_after

BUSY = "sbatch --parsable --partition {} --nodes 2 --exclusive --output /dev/null --wrap".split()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from cluster_or_skip(preempt_signal=True)


def become(run: Path, state: str, holds: Callable[[RunStatus], bool] = lambda _: True) -> RunStatus:
    """Poll until `status` tells a state for which something holds; gives it."""

    def probe() -> RunStatus | None:
        found = read_status(run)
        return found if found.state == state and holds(found) else None

    found = until(f"{run.name} {state}", probe, 120)
    assert found
    return found


def holder(cluster: Cluster, partition: str, command: str) -> str:
    """A job that takes both nodes."""
    return cluster.command(*[word.format(partition) for word in BUSY], command)


@pytest.mark.slow
def test_a_preempted_run_is_told_in_every_state(
    cluster: Cluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    first = holder(cluster, "main", "sleep 300")
    cluster.wait_for(first, "RUNNING", 30)
    job = submit(PLAN, TrainJob.of(small(600), dataset, run)).job_id
    waits = become(run, "pending", lambda found: "not looked" not in found.text)
    assert waits.slurm_job == job and re.search(r"\((Resources|Priority)\)", waits.text), waits.text
    assert main(["status", str(run)]) == 0 and ": pending since " in capsys.readouterr().out

    cluster.command("scancel", first)
    runs = become(run, "running", lambda found: (found.step or 0) > 3)
    assert runs.figures.total == 600 and runs.slurm_job == job and runs.requeues == 0, runs.text

    holder(cluster, "high", "true")
    again = become(run, "requeued", lambda found: found.requeues == 1)
    assert again.step == int(next(iter(stopped_after(run, 4)))), again.text
    assert "; requeued once" in again.text and "the start before saved and stopped" in again.text

    ends = become(run, "finished")
    assert (ends.step, ends.requeues, ends.starts) == (600, 1, 2), ends.text
    assert main(["status", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["failure"], facts["problem"]) == ("finished", None, "")


@pytest.mark.slow
def test_a_killed_rank_is_named_as_the_first_to_fail(
    cluster: Cluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    plan = replace(PLAN, max_requeues=0)
    submit(plan, TrainJob.of(small(20_000), dataset, run))
    become(run, "running", lambda found: (found.step or 0) > 3)
    beats = read_heartbeat(run)
    assert beats
    os.kill(beats.beats[2].pid, signal.SIGKILL)
    ends = until("the end", lambda: (found := read_status(run)) and not found.goes_on and found, 120)
    assert ends and ends.exit_status == 1 and ends.failure and ends.failure.rank == 2, ends
    assert "killed" in ends.failure.error, ends.failure
    assert main(["logs", str(run), "--errors"]) == 0 and "rank 2 on n2" in capsys.readouterr().out


@pytest.mark.slow
def test_cancel_of_a_running_and_of_a_waiting_job(
    cluster: Cluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    first = submit(PLAN, TrainJob.of(small(20_000), dataset, run)).job_id
    become(run, "running", lambda found: (found.step or 0) > 3)
    (code,) = (run / "launch").glob("code-*")
    words = ["--dependency", f"afterany:{first}", "--chdir", str(code), "--wrap", "true"]
    after = cluster.command("sbatch", "--parsable", *words)
    (run / "launch" / f"{after}_submission.sh").touch()  # as of a chain
    assert read_status(run).later == (after,)
    assert main(["cancel", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"job {after}: cancelled while it waited" in said and f"job {first}: cancelled while it r" in said
    ends = become(run, "stopped")
    assert ends.exit_status == 75 and ends.checkpoint == f"step-{ends.step:08d}.pt", ends.text
    until("the end", lambda: cluster.job(first)["JobState"] == "CANCELLED", 60)
    assert "was cancelled (Slurm: CANCELLED)" in read_status(run).text
    assert cluster.command("squeue", "--noheader") == ""
    assert main(["cancel", str(run)]) == 0 and "nothing to cancel" in capsys.readouterr().out
