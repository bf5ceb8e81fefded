"""A real Slurm: jobs that are killed with no warning come back, and those that would fail again do not."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpcphotoz.config.load import configure
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.requeue.failures import read_failures
from hpcphotoz.launch.requeue.record import FAILED, KILLED
from hpcphotoz.launch.slurm import submit
from tests.helpers.launch.cluster import Cluster, until
from tests.helpers.launch.jobs import (
    EVERY,
    PLAN,
    Curve,
    assert_same_curve,
    disturbed_config,
    kill_rank,
    log,
    requeues,
    resumed_at,
    training,
    wait_for_restart,
    wait_for_steps,
)
from tests.helpers.launch.runs import small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ON_ONE_NODE = replace(PLAN, nodes=1)
FAILING = """\
from torch import nn

class Failing(nn.Module):
    def __init__(self, bands, bins):
        super().__init__()
        self.linear, self.calls = nn.Linear(bands, bins), 0

    def forward(self, images):
        self.calls += 1
        if self.calls > 40:
            raise RuntimeError("planted")
        return self.linear(images.mean((2, 3)))

def network(bands, stamp, bins, scale):
    return Failing(bands, bins)
"""


def test_a_job_of_which_a_rank_is_killed_goes_on_from_its_last_checkpoint(
    cluster: Cluster, dataset: Path, tmp_path: Path, undisturbed: Curve
) -> None:
    run = tmp_path / "run"
    submitted = training(cluster, dataset, run, disturbed_config(), steps=2 * EVERY)
    kill_rank(submitted, 3, 0)
    wait_for_restart(cluster, submitted, 1)
    cluster.wait_for(submitted.job_id, "COMPLETED", 300)
    assert len(requeues(submitted).requeues) == 1, cluster.logs()
    (requeue,) = requeues(submitted).requeues
    assert (requeue.reason, requeue.node) == (KILLED, "n2")
    assert requeue.step and requeue.step % EVERY == 0 and resumed_at(run) == [0, requeue.step]
    assert f"killed on n2; requeued, goes on from step {requeue.step}" in log(submitted, 0)
    assert_same_curve(run, undisturbed)


def test_a_node_that_fails_twice_is_not_used_again(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submitted = training(cluster, dataset, run, disturbed_config(), ON_ONE_NODE, steps=EVERY)
    first = cluster.job(submitted.job_id)["NodeList"]
    for restart in (0, 1):
        kill_rank(submitted, 1, restart)
        wait_for_restart(cluster, submitted, restart + 1)
        if restart == 0:
            wait_for_steps(cluster, submitted, run, (requeues(submitted).requeues[0].step or 0) + EVERY)
    facts = cluster.wait_for(submitted.job_id, "COMPLETED", 300)
    assert facts["ExcNodeList"] == first != facts["NodeList"]
    assert requeues(submitted).excluded == (first,)
    assert f"{first} failed twice: not used again by this job" in log(submitted, 0)


def test_an_error_that_comes_again_ends_the_job(
    cluster: Cluster, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    run = tmp_path / "run"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    sizes = {"bins": 20, "validation": 0, "global_batch": 16, "epochs": 100, "max_steps": 1000}
    config = configure("test", name="failing:network", **sizes)
    submitted = submit(ON_ONE_NODE, TrainJob.of(config, dataset, run))
    facts = cluster.wait_for(submitted.job_id, "FAILED", 300)
    assert facts["Restarts"] == "1"
    record = requeues(submitted)
    assert [entry.reason for entry in record.requeues] == [FAILED]
    assert record.ended == "not requeued: failed twice at checkpoint step 0: RuntimeError: planted"
    assert f"hpcphotoz: {record.ended}\n" in log(submitted, 0)
    failure = read_failures(run, submitted.job_id, 1)[0]
    assert failure.error == "RuntimeError: planted" and "failing.py" in failure.traceback


def test_without_progress_a_job_comes_back_a_limited_number_of_times(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    plan = replace(ON_ONE_NODE, max_requeues=1)
    submitted = training(cluster, dataset, run, small(100_000), plan)
    kill_rank(submitted, 1, 0)
    wait_for_restart(cluster, submitted, 1)
    until("the second start", lambda: len(resumed_at(run)) == 2, 60)
    wait_for_steps(cluster, submitted, run, 3)
    kill_rank(submitted, 1, 1)
    facts = cluster.wait_for(submitted.job_id, "FAILED", 60)
    assert facts["Restarts"] == "1"
    ended = requeues(submitted).ended
    assert "1 requeues in a row without progress" in ended and f"hpcphotoz: {ended}\n" in log(submitted, 0)
