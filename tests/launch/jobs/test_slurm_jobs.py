"""A real Slurm: a sweep and its table, a chain, a job after another, and one task of an array disturbed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs.after import dependency
from hpcphotoz.launch.jobs.chain import submit_chain
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.launch.slurm import submit
from tests.helpers import ranks
from tests.helpers.launch.cluster import Cluster, until
from tests.helpers.launch.jobs import cluster_or_skip
from tests.helpers.launch.runs import small, starts, steps_logged

pytestmark = pytest.mark.slow
PLAN = LaunchPlan(tasks_per_node=2, cpus_per_task=1)
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from cluster_or_skip(preempt_signal=True)


def command(dataset: Path, out: Path, steps: int, *launch: str) -> list[str]:
    """A command line that launches small runs of two ranks, without a checkpoint before the end."""
    options = {"model.width": 8, "model.bins": 20, "data.validation": 0.2, "data.read_threads": 1}
    options |= {"run.epochs": 2000, "run.global_batch": 16, "run.max_steps": steps, "run.log_steps": 1}
    options |= {"run.checkpoint_steps": 10**6}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    shape = ["--tasks-per-node", "2", "--cpus-per-task", "1"]
    train = ["train", "standard", "--data", str(dataset), "--out", str(out), "--device", "cpu"]
    return ["launch", "slurm", *shape, *launch, "--", *train, *given]


def end_of(cluster: Cluster, job: str, launch: Path) -> dict[str, str]:
    """Wait for the end of a job and return what Slurm knows of it."""

    def ended() -> dict[str, str]:
        facts = cluster.job(job)
        return facts if facts["JobState"] in ENDED else {}

    try:
        return until(f"end of job {job}", ended, 240)
    except TimeoutError:
        said = [path.read_text()[-2000:] for path in sorted(launch.glob("*_log.out"))]
        raise AssertionError(f"{cluster.job(job)}; {said}; {cluster.logs()}") from None


def test_a_sweep_of_three_to_the_end_and_its_table(
    cluster: Cluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a sweep"
    words = command(dataset, out, 5, "--sweep", "run.seed=0:3", "--at-most", "2")
    assert main(words) == 0
    jobs = {entry["folder"]: entry["job"] for entry in json.loads((out / "sweep.json").read_text())["runs"]}
    assert list(jobs) == ["seed=0", "seed=1", "seed=2"]
    for name, job in jobs.items():
        assert end_of(cluster, job, out / "launch")["JobState"] == "COMPLETED"
        assert steps_logged(out / name) == [1, 2, 3, 4, 5]
        assert (out / "launch" / f"{job}_1_log.out").is_file()
    losses = [ranks.curve(out / name) for name in jobs]
    assert losses[0] != losses[1] != losses[2], "each run has its own seed"
    capsys.readouterr()
    assert main(["compare", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert sorted(row["run"] for row in rows) == list(jobs)
    assert [row["state"] for row in rows] == ["finished"] * 3 and all(row["step"] == 5 for row in rows)
    assert [row["score"] for row in rows] == sorted(row["sigma_mad"] for row in rows)
    assert main(words) == 0
    assert "0 of 3 runs; not launched again: 3 finished" in capsys.readouterr().out


def test_one_run_of_an_array_is_cancelled_and_another_preempted(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    """The preempted one is the last of the array, whose own number is that of the array."""
    out, steps = tmp_path / "sweep", 400
    assert main(command(dataset, out, steps, "--nodes", "1", "--sweep", "run.seed=0:3")) == 0
    entries = json.loads((out / "sweep.json").read_text())["runs"]
    jobs = [entry["job"] for entry in entries]
    runs = [out / entry["folder"] for entry in entries]
    until("all train", lambda: all(len(steps_logged(run)) > 3 for run in runs), 120)
    cluster.command("scancel", jobs[0])
    last = next(k for k in (1, 2) if cluster.job(jobs[k])["JobId"] == jobs[0].partition("_")[0])
    other = 3 - last
    node = cluster.job(jobs[last])["NodeList"]
    shared = cluster.job(jobs[other])["NodeList"] == node
    words = f"sbatch --parsable --partition high --nodelist {node} --exclusive --output /dev/null --wrap true"
    cluster.command(*words.split())
    facts = [end_of(cluster, job, out / "launch") for job in jobs]
    assert [one["JobState"] for one in facts] == ["CANCELLED", "COMPLETED", "COMPLETED"]
    restarts = [one["Restarts"] for one in facts]
    assert restarts[0] == "0" and restarts[last] == "1" and restarts[other] == ("1" if shared else "0")
    assert all(steps_logged(runs[k]) == list(range(1, steps + 1)) for k in (last, other))
    assert len(steps_logged(runs[0])) < steps and len(starts(runs[0])) == 1


def test_a_chain_reaches_the_end_with_the_curve_of_an_unbroken_run(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    """A budget of no time: each job takes one step. The fourth finds the run finished, the fifth too."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    unbroken = submit(PLAN, TrainJob.of(small(3), dataset, whole))
    job = TrainJob.of(small(3, wall_minutes=1e-9), dataset, run)
    queued = submit_chain(PLAN, job, 5, lambda text: None)
    launch = run / "launch"
    facts = [end_of(cluster, one, launch) for one in queued]
    states = [(one["JobState"], one["ExitCode"]) for one in facts]
    assert states == [("FAILED", "75:0")] * 2 + [("COMPLETED", "0:0")] * 3
    assert [one["Restarts"] for one in facts] == ["0"] * 5
    assert [start["step"] for start in starts(run)] == [0, 1, 2], "no later job has started a rank"
    assert "the run is finished" in (launch / f"{queued[4]}_0_log.out").read_text()
    end_of(cluster, unbroken.job_id, whole / "launch")
    assert ranks.curve(run) == ranks.curve(whole) and len(ranks.curve(run)) == 3


def test_a_chain_that_fails_by_bad_input_ends_with_that_status(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = TrainJob.of(small(3), dataset, run, device="cuda")  # which torch does not see there
    queued = submit_chain(PLAN, job, 3, lambda text: None)
    facts = [end_of(cluster, one, run / "launch") for one in queued]
    assert [one["JobState"] for one in facts] == ["FAILED"] * 3
    assert [one["ExitCode"] for one in facts[1:]] == ["1:0"] * 2
    for one in queued[1:]:
        said = (run / "launch" / f"{one}_0_log.out").read_text()
        assert said.startswith("hpcphotoz: the run failed: ") and len(said.splitlines()) == 1


def test_a_job_after_another_reads_its_weights(
    cluster: Cluster, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert main(command(dataset, first, 60)) == 0
    later = command(dataset, second, 3, "--after", str(first))
    assert main([*later, "--from", str(first)]) == 0
    ids = re.findall(r"^job (\d+)", capsys.readouterr().out, re.MULTILINE)
    assert cluster.job(ids[1])["Dependency"].startswith(f"afterok:{ids[0]}")
    assert end_of(cluster, ids[1], second / "launch")["JobState"] == "COMPLETED"
    assert starts(second)[0]["from"]["step"] == 60 and dependency([str(first)]) == ""
    # One that fails takes the job after it out of the queue.
    bad = submit(PLAN, TrainJob.of(small(9), dataset, third, device="cuda"))
    begun = TrainJob.of(small(3), dataset, tmp_path / "fourth")
    waits = submit(PLAN, begun, dependency=f"afterok:{bad.job_id}")
    assert end_of(cluster, waits.job_id, waits.logs)["JobState"] == "CANCELLED"
    assert not (tmp_path / "fourth" / "provenance.json").exists()
