"""Chains without a cluster: what is submitted, what a refusal says, and how later jobs learn of the end."""

import pickle
import re
import subprocess
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs import chain
from hpcphotoz.launch.jobs.chain import ChainJob, submit_chain
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.training.loop import Diverged
from tests.helpers.launch.queue import FakeQueue
from tests.helpers.launch.runs import Install

PLAN = LaunchPlan(partition="gpu")


def test_each_job_begins_after_the_one_before(job: TrainJob, install: Install, tmp_path: Path) -> None:
    queue = FakeQueue(install, tmp_path)
    assert submit_chain(PLAN, job, 3, dependency="afterok:7") == ["11", "12", "13"]
    assert [queue.option(name, "dependency") for name in queue.scripts] == [
        "afterok:7",
        "afterany:11",
        "afterany:12",
    ]
    assert all("--kill-on-invalid-dep=yes" in text for text in queue.scripts.values())
    stored = pickle.loads((Path(job.out) / "launch/13_submitted.pkl").read_bytes()).function
    assert isinstance(stored, ChainJob) and not stored.requeue_at_time_limit
    assert stored.max_requeues == PLAN.max_requeues  # after a preemption it is requeued
    assert all(stored.ended in text for text in queue.scripts.values())


def test_a_refusal_in_the_middle_names_what_is_queued(
    job: TrainJob, install: Install, tmp_path: Path
) -> None:
    queue = FakeQueue(install, tmp_path, refuse=3)
    with pytest.raises(BadInput) as refusal:
        submit_chain(PLAN, job, 4)
    said = str(refusal.value)
    assert said.startswith("job 3 of 4: sbatch refused the job: QOSMaxSubmitJobPerUserLimit")
    assert "queued are 11, 12" in said and "--chain 2" in said and "scancel 11 12" in said
    pickles = sorted(path.name for path in (Path(job.out) / "launch").glob("*.pkl"))
    assert pickles == ["11_submitted.pkl", "12_submitted.pkl"]
    queue.set_states({"11": "RUNNING", "12": "PENDING"})
    (tmp_path / "bin/sbatch").write_text((tmp_path / "bin/sbatch").read_text().replace("= 3 ]", "= 0 ]"))
    said_later: list[str] = []
    assert submit_chain(PLAN, job, 2, said_later.append) == ["13", "14"]
    assert queue.option("13", "dependency") == "afterany:12" and "begins after it" in said_later[0]


def test_a_refusal_of_the_first_leaves_nothing(job: TrainJob, install: Install, tmp_path: Path) -> None:
    FakeQueue(install, tmp_path, refuse=1)
    with pytest.raises(BadInput, match="^sbatch refused the job"):
        submit_chain(PLAN, job, 4)
    assert not Path(job.out).exists()


def test_a_chain_does_not_begin_beside_another_process(
    job: TrainJob, install: Install, tmp_path: Path
) -> None:
    queue, lock = FakeQueue(install, tmp_path), Path(job.out) / "logs" / "lock"
    lock.parent.mkdir(parents=True)
    with lock_file(lock, "held", "wait"), pytest.raises(BadInput, match="another process trains in it"):
        submit_chain(PLAN, job, 2)
    assert not queue.scripts


def test_a_dry_run_shows_the_script_and_writes_nothing(job: TrainJob) -> None:
    text = chain.dry_run(PLAN, job, 5)
    assert text.startswith("#!/bin/bash") and "# 5 jobs with this script" in text
    assert "--dependency" not in text.partition("# 5 jobs")[0]
    assert not Path(job.out).exists()
    with pytest.raises(BadInput, match="--chain 101: want 1 to 100"):
        chain.dry_run(PLAN, job, 101)


@pytest.mark.parametrize(
    ("outcome", "status", "says"),
    [
        ("finished", 0, "the run is finished"),
        ("stopped", None, ""),
        (BadInput("a\x1b[2J; $(touch bad) 'quote\""), 1, "the run failed: a\\x1b[2J; $(touch bad) 'quote\""),
        (Diverged("step 3: loss is not finite"), 1, "the run failed: step 3: loss is not finite"),
        (OSError("disk"), None, ""),  # the next job tries again
    ],
)
def test_later_jobs_end_at_once_with_the_status_of_the_run(
    outcome: str | Exception, status: int | None, says: str, job: TrainJob, tmp_path: Path
) -> None:
    """The first lines of a job's script, run by bash: those before the line that srun is on."""
    job = replace(job, out=str(tmp_path / "a run; it's"))
    text = chain.dry_run(PLAN, job, 2)
    (path,) = re.findall(
        r"chain-[0-9a-f]{8}\.ended", text.splitlines()[text.splitlines().index("# setup") + 1]
    )[:1]
    ended = Path(job.out) / "launch" / path
    ended.parent.mkdir(parents=True)
    given = {field.name: getattr(job, field.name) for field in fields(job)}
    one = ChainJob(**given, ended=str(ended))
    with mock.patch.object(TrainJob, "__call__", side_effect=[outcome]):
        if isinstance(outcome, Exception):
            with pytest.raises(type(outcome)):
                one()
        else:
            assert one() == outcome
    script = text.partition("srun ")[0] + "echo ranks start\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20, cwd=tmp_path)
    if status is None:
        assert done.stdout.endswith("\nranks start\n") and done.returncode == 0
    else:
        assert (done.returncode, done.stdout) == (status, f"hpcphotoz: {says}\n")
    assert not (tmp_path / "bad").exists() and done.stderr == ""
