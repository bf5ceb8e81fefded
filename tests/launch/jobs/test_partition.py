"""What a launch says of its partition: a job that would never start, and a partition that is not there."""

from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch import slurm
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs.chain import submit_chain
from hpcphotoz.launch.request.plan import LaunchPlan
from tests.helpers.launch.queue import FakeQueue
from tests.helpers.launch.runs import Install

PARTITIONS = (
    "PartitionName=main Default=YES MaxNodes=UNLIMITED MaxTime=01:00:00 TotalNodes=2\n"
    "PartitionName=gpu Default=NO MaxNodes=1 MaxTime=UNLIMITED TotalNodes=8"
)
WOULD_NOT = ": this job would not start"


@pytest.fixture
def queue(install: Install, tmp_path: Path) -> FakeQueue:
    queue = FakeQueue(install, tmp_path)
    install("scontrol", f"echo asked >> '{tmp_path}/asked'; cat <<'E'\n{PARTITIONS}\nE")
    return queue


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (LaunchPlan(nodes=2, time="60"), []),
        (
            LaunchPlan(nodes=3, time="2:00:00"),
            [
                "--nodes 3 --time 2:00:00: partition main has at most 2 nodes for a job and MaxTime 01:00:00"
                + WOULD_NOT
            ],
        ),
        (LaunchPlan(time="61"), ["--time 61: partition main has MaxTime 01:00:00" + WOULD_NOT]),
        (LaunchPlan(partition="gpu", time="9-0"), []),
        (
            LaunchPlan(partition="gpu", nodes=2),
            ["--nodes 2: partition gpu has at most 1 node for a job" + WOULD_NOT],
        ),
        (LaunchPlan(partition="main,gpu", nodes=9), []),
    ],
)
def test_a_job_that_would_never_start_is_queued_with_a_warning(
    plan: LaunchPlan, says: list[str], queue: FakeQueue, job: TrainJob, tmp_path: Path
) -> None:
    said: list[str] = []
    assert slurm.submit(plan, job, said.append).job_id == "11"
    assert said == says
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_chain_is_warned_of_once(queue: FakeQueue, job: TrainJob, tmp_path: Path) -> None:
    said: list[str] = []
    submit_chain(LaunchPlan(nodes=3), job, 3, said.append)
    assert len(said) == 1 and said[0].endswith(WOULD_NOT)
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_without_an_answer_of_slurm_nothing_is_said(
    queue: FakeQueue, job: TrainJob, install: Install
) -> None:
    install("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    said: list[str] = []
    slurm.submit(LaunchPlan(nodes=99), job, said.append)
    assert said == []


def test_a_refused_partition_names_the_nearest(queue: FakeQueue, job: TrainJob, install: Install) -> None:
    install(
        "sbatch",
        "echo 'sbatch: error: invalid partition specified: gpuu' >&2\n"
        "echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2; exit 1",
    )
    with pytest.raises(BadInput) as refused:
        slurm.submit(LaunchPlan(partition="gpuu"), job)
    assert str(refused.value) == (
        "sbatch refused the job: invalid partition specified: gpuu; Batch job submission failed: Invalid "
        "partition name specified: --partition gpuu: no such partition (did you mean gpu?): "
        "it has main, gpu"
    )
    assert not Path(job.out).exists()
