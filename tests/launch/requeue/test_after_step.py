"""Which jobs come back after a failed step: the decision, and the batch script with a fake Slurm."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import submitit

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.requeue.after_step import decide
from hpcphotoz.launch.requeue.batch_lines import START_LINE, batch_lines
from hpcphotoz.launch.requeue.failures import RankFailure, recording_own_failure
from hpcphotoz.launch.requeue.node_guard import StartLog
from hpcphotoz.launch.requeue.record import FAILED, KILLED, Requeue, RequeueRecord, record_file
from tests.helpers.launch.runs import Install
from tests.helpers.paths import ROOT

KILL, EXIT = StartLog("n2", "Killed"), StartLog("n2", "Exited with exit code 1")


def failure(kind: str, error: str = "the error") -> RankFailure:
    return RankFailure(0.0, 1, "n2", "7", 1, kind, error, "")


def decision(
    *failures: RankFailure, before: Requeue | None = None, log: StartLog = EXIT, step: int = 5
) -> Requeue | str:
    record = RequeueRecord((before,) if before else ())
    return decide(record, step, 1, failures, log, max_requeues=10)


@pytest.mark.parametrize("kind", ["BadInput", "Diverged"])
def test_what_would_fail_again_stays_away(kind: str) -> None:
    found = decision(failure("RankLost"), failure(kind))
    assert found == "not requeued: rank 1 on n2: the error"


def test_a_port_that_another_program_has_is_another_one_in_the_next_start() -> None:
    taken = failure(
        "BadInput", "MASTER_PORT=30411: cannot listen there: Address already in use: choose a free port"
    )
    found = decision(failure("BadInput", "rank 3 has other options"), taken)
    assert isinstance(found, Requeue) and found.reason == FAILED


def test_a_python_error_comes_back_once_unless_there_is_progress() -> None:
    first = decision(failure("ValueError"))
    assert isinstance(first, Requeue) and (first.reason, first.node) == (FAILED, "n2")
    before = Requeue(0, 5, FAILED)
    assert decision(failure("ValueError"), before=before) == (
        "not requeued: failed twice at checkpoint step 5: the error"
    )
    assert isinstance(decision(failure("ValueError"), before=before, step=6), Requeue)
    assert isinstance(decision(failure("ValueError"), before=Requeue(0, 5, KILLED)), Requeue)


def test_a_rank_that_ends_before_training_is_an_error_too() -> None:
    before = Requeue(0, 0, FAILED)
    assert isinstance(decision(before=before, step=0), str)


@pytest.mark.parametrize(
    ("failures", "log"),
    [
        ([], KILL),
        ([], StartLog()),
        ([failure("RankLost")], KILL),
        ([failure("RankLost")], EXIT),  # a rank hangs
        ([failure("AcceleratorError", "CUDA error: uncorrectable ECC error")], EXIT),
    ],
)
def test_a_killed_job_comes_back_within_the_limit(failures: list[RankFailure], log: StartLog) -> None:
    record = RequeueRecord()
    for restart in range(3):
        found = decide(record, 0, restart, failures, log, max_requeues=3)
        assert isinstance(found, Requeue) and found.reason == KILLED
        record = record.add(found)
    assert "3 requeues in a row" in str(decide(record, 0, 3, failures, log, max_requeues=3))


def test_too_little_memory_on_a_gpu_is_an_error_of_the_program() -> None:
    found = decision(failure("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB"))
    assert isinstance(found, Requeue) and found.reason == FAILED


class Batch:
    """The batch script of job 7 with a fake srun and scontrol."""

    def __init__(self, job: TrainJob, install: Install, tmp_path: Path) -> None:
        self.run, self._install, self._said = Path(job.out), install, tmp_path / "scontrol"
        self.launch = self.run / "launch"
        self.launch.mkdir(parents=True)
        self.log = self.launch / "7_0_log.out"
        delayed = submitit.core.utils.DelayedSubmission(job)
        (self.launch / "7_submitted.pkl").write_bytes(pickle.dumps(delayed))
        self.python, self.setup = sys.executable, ""
        self.scontrol = ""  # text of scontrol; "": it says what `step` is given
        self._install("sbatch", "exit 0")

    def step(self, status: int, restart: int = 0, srun: str = "", **facts: str) -> list[str]:
        """Run the script once; returns what it asked of scontrol, without the questions."""
        told = {"JobState": "RUNNING", "Restarts": str(restart), "NumNodes": "1", "ExcNodeList": "(null)"}
        shown = " ".join(f"{name}={value}" for name, value in (told | facts).items())
        self._said.write_text("")
        self._install("srun", f"echo '{srun}' >&2; exit {status}")
        self._install(
            "scontrol",
            self.scontrol
            or f'case "$*" in "show job"*) echo "JobId=7 {shown} Command=a run/JobState=x";; '
            f'"show part"*) echo "PartitionName=main TotalNodes=4";; *) echo "$*" >>{self._said};; esac',
        )
        lines = [
            "#!/bin/bash",
            self.setup,
            START_LINE,
            "srun",
            "",
            *batch_lines(self.python, (), self.launch),
        ]
        env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_PARTITION": "main"}
        env |= {"SLURM_JOB_NODELIST": "n[1-2]", "PYTHONPATH": str(ROOT)}
        if restart:
            env["SLURM_RESTART_COUNT"] = str(restart)
        with self.log.open("a") as log:
            done = subprocess.run(
                ["bash", "-c", "\n".join(lines)], env=env, stdout=log, stderr=log, timeout=60, check=False
            )
        assert done.returncode == status, "the job ends with the status of srun"
        return self._said.read_text().splitlines()


@pytest.fixture
def batch(job: TrainJob, install: Install, tmp_path: Path) -> Batch:
    return Batch(job, install, tmp_path)


def test_a_bad_node_is_excluded_from_the_second_requeue(batch: Batch) -> None:
    killed = "srun: error: n2: task 0: Killed"
    assert batch.step(137, 0, killed) == ["requeue 7"]
    assert batch.step(137, 1, killed, ExcNodeList="m1") == [
        "requeue 7",
        "update JobId=7 ExcNodeList=m1,n2",
    ]
    assert "n2 failed twice: not used again by this job" in batch.log.read_text()
    content = json.loads((batch.launch / "7_requeues.json").read_text())
    assert content["excluded"] == ["n2"]
    assert [(each["restart"], each["node"]) for each in content["requeues"]] == [(0, "n2"), (1, "n2")]


def test_a_node_without_which_slurm_has_too_few_stays(batch: Batch, install: Install) -> None:
    install("sbatch", 'echo "$*" >&2; case "$*" in *--exclude=n2*) exit 1;; esac')
    killed = "srun: error: n2: task 0: Killed"
    assert batch.step(137, 0, killed) == ["requeue 7"]
    assert batch.step(137, 1, killed) == ["requeue 7"]
    assert "without n2 Slurm has too few nodes for this job: not excluded" in batch.log.read_text()


def test_a_job_that_is_cancelled_during_the_decision_stays_away(batch: Batch, tmp_path: Path) -> None:
    assert batch.step(137, 0) == ["requeue 7"]
    asked, said = tmp_path / "asked", tmp_path / "said"
    batch.scontrol = f"""case "$*" in "show job"*) echo >>{asked}
[ $(wc -l <{asked}) = 1 ] && state=RUNNING || state=COMPLETING
echo "JobId=7 JobState=$state Restarts=1 NumNodes=1 ExcNodeList=(null)";;
"requeue"*) echo "$*" >>{said};; esac"""
    batch.step(137, 1)
    assert len(asked.read_text().splitlines()) == 2 and not said.exists()


def test_a_set_up_that_ends_the_shell_at_an_error_does_not_keep_the_job_from_coming_back(
    batch: Batch,
) -> None:
    batch.setup = "set -euo pipefail"
    assert batch.step(137, 0) == ["requeue 7"]


def test_failures_that_slurm_requeued_itself_count(batch: Batch) -> None:
    batch.log.write_text("hpcphotoz: start 0 on n[1-2]\nsrun: error: Node failure on n2\n")
    killed = batch.step(137, 1, "srun: error: n2: task 0: Killed")
    assert killed == ["requeue 7", "update JobId=7 ExcNodeList=n2"]


@pytest.mark.parametrize("status", [0, 2, 75])
def test_a_finished_stopped_or_refused_job_stays_away(status: int, batch: Batch) -> None:
    assert batch.step(status) == []
    assert not record_file(batch.run, "7").exists()


@pytest.mark.parametrize(
    "facts",
    [{"JobState": "COMPLETING"}, {"JobState": "CANCELLED"}, {"Restarts": "1"}, {"JobState": ""}],
)
def test_a_cancelled_or_requeued_job_is_left_alone(facts: dict[str, str], batch: Batch) -> None:
    assert batch.step(137, 0, **facts) == []


def test_bad_input_of_a_rank_ends_the_job_in_one_line(batch: Batch) -> None:
    with pytest.raises(BadInput), recording_own_failure(batch.run, "7", 1):
        raise BadInput("data: no such dataset")
    assert batch.step(1) == []
    ended = RequeueRecord.read(record_file(batch.run, "7")).ended
    assert ended.endswith("data: no such dataset") and f"hpcphotoz: {ended}\n" in batch.log.read_text()


def test_without_python_the_job_ends_with_the_status_of_srun(batch: Batch) -> None:
    batch.python = "/nowhere/python"
    assert batch.step(137) == []


def test_a_requeue_that_slurm_refused_rank_0_is_asked_again(batch: Batch) -> None:
    record = RequeueRecord((Requeue(0, 4, "stopped"),))
    record.write(record_file(batch.run, "7"))
    assert batch.step(255) == ["requeue 7"]
    assert RequeueRecord.read(record_file(batch.run, "7")) == record


def test_the_decision_needs_no_torch() -> None:
    code = "import sys; import hpcphotoz.launch.requeue.after_step; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
