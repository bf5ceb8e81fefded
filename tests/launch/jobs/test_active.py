"""A launch of a run that is worked on already."""

from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch import slurm
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs.active import command, shown
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.locks.lock import lock_file
from tests.helpers.launch.queue import FakeQueue
from tests.helpers.launch.runs import Install

PLAN = LaunchPlan()


@pytest.fixture
def queue(install: Install, tmp_path: Path) -> FakeQueue:
    return FakeQueue(install, tmp_path)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED"])
def test_a_second_job_of_a_run_is_refused_while_the_first_is_there(
    state: str, queue: FakeQueue, job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.submit(PLAN, job)
    queue.set_states({"11": state})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as refused:
        slurm.submit(PLAN, job)
    assert str(refused.value) == (
        "a run: job 11 of this run is queued or runs: cancel it first (hpcphotoz cancel 'a run'), "
        "or add jobs after it with --chain"
    )
    assert list(queue.scripts) == ["11"]


def test_a_job_that_begins_after_the_first_is_not_refused(queue: FakeQueue, job: TrainJob) -> None:
    slurm.submit(PLAN, job)
    queue.set_states({"11": "RUNNING"})
    assert slurm.submit(PLAN, job, dependency="afterok:7:11").job_id == "12"
    with pytest.raises(BadInput, match="job 11 of this run is queued or runs"):
        slurm.submit(PLAN, job, dependency="afterok:111")


@pytest.mark.parametrize("states", [{}, {"11": "COMPLETED"}, {"11": "TIMEOUT"}, {"11": "CANCELLED"}])
def test_a_run_whose_job_has_ended_goes_on(states: dict[str, str], queue: FakeQueue, job: TrainJob) -> None:
    slurm.submit(PLAN, job)
    queue.set_states(states)
    assert slurm.submit(PLAN, job).job_id == "12"


def test_where_slurm_cannot_be_asked_a_held_lock_decides(
    queue: FakeQueue, job: TrainJob, install: Install
) -> None:
    slurm.submit(PLAN, job)
    install("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    lock = Path(job.out) / "logs" / "lock"
    lock.parent.mkdir()
    with lock_file(lock, "held", "wait"), pytest.raises(BadInput, match="another process trains in it"):
        slurm.submit(PLAN, job)
    assert slurm.submit(PLAN, job).job_id == "12"


def test_a_run_is_shown_as_it_would_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs/d") == "runs/d" and shown(Path("/elsewhere/d")) == "/elsewhere/d"
    assert command("status", tmp_path / "it's") == "hpcphotoz status 'it'\"'\"'s'"
