"""A real Slurm: nodes that go down in mid-job, and jobs that run elsewhere than they were submitted."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import hpcphotoz
from hpcphotoz.config.load import to_toml
from hpcphotoz.launch.slurm import SubmittedJob
from tests.helpers.launch.cluster import Cluster
from tests.helpers.launch.jobs import (
    EVERY,
    PLAN,
    Curve,
    assert_same_curve,
    disturbed_config,
    log,
    resumed_at,
    training,
)
from tests.helpers.launch.runs import small, steps_logged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextmanager
def down(cluster: Cluster, node: str) -> Iterator[None]:
    """A node that Slurm takes for failed, and that stays away, while the block runs."""
    for state in (
        "down",
        "drain",
    ):  # a node that is down alone comes back when its slurmd says that it is there
        cluster.command("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")
    try:
        yield
    finally:
        cluster.command("scontrol", "update", f"nodename={node}", "state=resume")


def assert_resumed(run: Path, undisturbed: Curve) -> None:
    first, second = resumed_at(run)
    assert first == 0 and second >= 2 * EVERY
    assert_same_curve(run, undisturbed)


def test_a_job_whose_node_goes_down_goes_on_when_it_is_back(
    cluster: Cluster, dataset: Path, tmp_path: Path, undisturbed: Curve
) -> None:
    run = tmp_path / "run"
    submitted = training(cluster, dataset, run, disturbed_config(), steps=2 * EVERY)
    with down(cluster, "n2"):
        cluster.wait_for(submitted.job_id, "PENDING", 120)
    cluster.wait_for(submitted.job_id, "COMPLETED", 300)
    assert_resumed(run, undisturbed)


def test_a_job_whose_node_goes_down_goes_on_on_another(
    cluster: Cluster, dataset: Path, tmp_path: Path, undisturbed: Curve
) -> None:
    run = tmp_path / "run"
    plan = replace(PLAN, nodes=1, tasks_per_node=4)
    submitted = training(cluster, dataset, run, disturbed_config(), plan, steps=2 * EVERY)
    node = cluster.job(submitted.job_id)["NodeList"]
    with down(cluster, node):
        facts = cluster.wait_for(submitted.job_id, "COMPLETED", 300)
    assert facts["NodeList"] != node
    assert_resumed(run, undisturbed)


def test_a_job_runs_the_code_that_was_submitted_from_a_folder_with_spaces(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    project = tmp_path / "my project"
    package = project / "hpcphotoz"
    words = ["cp", "--recursive", "--dereference", str(Path(hpcphotoz.__file__).parent), str(package)]
    project.mkdir()
    subprocess.run(words, check=True, timeout=60)
    (project / "my options.toml").write_text(to_toml(small(10)))
    (project / "my data").symlink_to(dataset)
    words = [sys.executable, "-m", "hpcphotoz", "launch", "slurm", "--nodes", "2", "--tasks-per-node", "2"]
    words += ["--cpus-per-task", "1", "--extra", "hold", "--", "train", "my options.toml"]
    words += ["--data", "my data", "--out", "my run"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.split()[1].rstrip(",")
    (package / "errors.py").write_text("raise SystemExit('edited after the submission')\n")
    cluster.command("scontrol", "release", job_id)
    run = project / "my run"
    submitted = SubmittedJob(job_id, run / "launch")
    cluster.wait_for(job_id, "COMPLETED", 300)
    assert steps_logged(run) == list(range(1, 11))
    (code,) = (run / "launch").glob("code-*")
    assert f"code {code}, restart 0" in log(submitted, 3)
