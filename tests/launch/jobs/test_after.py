"""The job that `--after` waits for."""

import json
import os
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch import slurm
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs.after import active_job, dependency
from hpcphotoz.launch.request.plan import LaunchPlan
from tests.helpers.launch.queue import FakeQueue
from tests.helpers.launch.runs import Install, small


@pytest.fixture
def queue(install: Install, tmp_path: Path) -> FakeQueue:
    return FakeQueue(install, tmp_path)


def test_a_job_waits_for_the_newest_job_of_a_run_and_reads_its_weights_later(
    queue: FakeQueue, job: TrainJob, dataset: Path, tmp_path: Path
) -> None:
    slurm.submit(LaunchPlan(), job)
    slurm.submit(LaunchPlan(), job)
    os.utime(Path(job.out) / "launch/11_submission.sh", (1, 1))
    queue.set_states({"11": "FAILED", "12": "PENDING"})
    assert dependency([job.out]) == "afterok:12"
    later = TrainJob.of(small(3), dataset, tmp_path / "later", start_from=job.out)
    with pytest.raises(BadInput, match="no checkpoint"):
        slurm.submit(LaunchPlan(), later)
    slurm.submit(LaunchPlan(), later, dependency=dependency([job.out, "12"]))
    assert queue.option("13", "dependency") == "afterok:12"
    assert queue.option("13", "kill-on-invalid-dep") == "yes"


def test_several_are_waited_for_together(queue: FakeQueue) -> None:
    queue.set_states({"5": "RUNNING", "6_0": "COMPLETED", "6_1": "PENDING"})
    assert dependency(["5", "6", "6_1"]) == "afterok:5:6:6_1"
    assert dependency([]) == ""


def test_a_finished_run_is_not_waited_for(queue: FakeQueue, tmp_path: Path) -> None:
    assert dependency([_run(tmp_path, "finished")]) == ""


@pytest.mark.parametrize(
    ("outcome", "says"), [("stopped", "stopped .* launch it again first"), ("failed", "failed")]
)
def test_a_run_that_nothing_will_finish_is_refused(
    outcome: str, says: str, queue: FakeQueue, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=f"no job of it is queued; .*{says}"):
        dependency([_run(tmp_path, outcome)])


def test_mistakes_are_one_line(queue: FakeQueue, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such run folder, nor a job id"):
        dependency([str(tmp_path / "none")])
    with pytest.raises(BadInput, match="it has not begun"):
        dependency([str(tmp_path)])
    with pytest.raises(BadInput, match="Slurm knows no such job"):
        dependency(["4711"])
    queue.set_states({"4711": "FAILED"})
    with pytest.raises(BadInput, match="4711: this job is FAILED"):
        dependency(["4711"])


def test_failures_of_squeue_are_told(install: Install, tmp_path: Path) -> None:
    install("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    with pytest.raises(BadInput, match="Slurm knows no such job"):
        dependency(["4711"])
    install("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(BadInput, match="Unable to contact slurm controller"):
        dependency(["4711"])


def test_the_job_of_a_run_of_a_sweep(queue: FakeQueue, tmp_path: Path) -> None:
    run = tmp_path / "eps=1"
    run.mkdir()
    entry = {"folder": "eps=1", "values": {"attack.eps": "1"}, "job": "11_3"}
    (tmp_path / "sweep.json").write_text(json.dumps({"keys": ["attack.eps"], "runs": [entry]}))
    assert active_job(run) is None
    queue.set_states({"11_3": "RUNNING", "11_2": "FAILED"})
    assert active_job(run) == "11_3"


def _run(folder: Path, outcome: str) -> str:
    run = folder / outcome
    run.mkdir()
    start = {"time": "t", "host": "h", "end": {"outcome": outcome, "reason": "r", "time": "t", "step": 3}}
    (run / "provenance.json").write_text(json.dumps({"starts": [start]}))
    return str(run)
