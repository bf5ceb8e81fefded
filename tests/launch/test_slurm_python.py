"""A real Slurm: the Python of the nodes is that of a conda environment, or runs in a container."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.launch.slurm import SubmittedJob, submit
from tests.helpers.launch.cluster import Cluster, until
from tests.helpers.launch.jobs import cluster_or_skip
from tests.helpers.launch.runs import Install, small, starts, steps_logged

PLAN = LaunchPlan(nodes=2, tasks_per_node=1, cpus_per_task=1)

# Runs the words after IMAGE without the programs of Slurm in PATH, and resets USR2, as Apptainer does.
APPTAINER = """
while [ "${{1%.sif}}" = "$1" ]; do [ "$1" = --pwd ] && cd "$2"; shift; done; shift
PATH={inside}; export PATH
exec {python} -c '
import os, signal, sys
signal.signal(signal.SIGUSR2, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])' "$@"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from cluster_or_skip(preempt_signal=True)


def logged(submitted: SubmittedJob) -> str:
    path = submitted.logs / f"{submitted.job_id}_0_log.out"
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_a_conda_environment_trains(
    cluster: Cluster, dataset: Path, tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm takes its spellings. The fake conda puts the environment first in PATH, as an activation does."""
    environment = tmp_path / "photo z" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").write_text(
        f'#!/bin/sh\necho "python of job $SEEN"\nexec {sys.executable} "$@"\n'
    )
    (environment / "python").chmod(0o755)
    monkeypatch.delenv("CONDA_EXE", raising=False)
    install("conda", 'echo \'conda() { PATH="$2/bin:$PATH"; export PATH; echo "activated $2"; }\'')
    asked: dict[str, Any] = {
        "mem": "500M",
        "time": "0-00:30",
        "gpus_per_node": "2",
        "srun": ("--cpu-bind=none",),
    }
    plan = replace(PLAN, conda=str(environment.parent), environment=(("SEEN", "$SLURM_JOB_ID"),), **asked)
    submitted = submit(plan, TrainJob.of(small(5), dataset, tmp_path / "a run", device="cpu"))
    facts = cluster.job(submitted.job_id)
    assert (facts["TimeLimit"], facts["MinMemoryNode"]) == ("00:30:00", "500M")
    cluster.wait_for(submitted.job_id, "COMPLETED", 120)
    assert f"activated {environment.parent}" in logged(submitted)
    assert f"python of job {submitted.job_id}" in logged(submitted)
    assert steps_logged(tmp_path / "a run") == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_preempted_job_in_a_container_comes_back(
    cluster: Cluster, dataset: Path, tmp_path: Path, install: Install
) -> None:
    """No program of Slurm is inside the container: the batch script requeues the job."""
    inside = tmp_path / "inside"
    inside.mkdir()
    for name, target in {"sh": "/bin/sh", "python3": sys.executable}.items():
        (inside / name).write_text(f'#!/bin/sh\nexec {target} "$@"\n')
        (inside / name).chmod(0o755)
    install("apptainer", APPTAINER.format(inside=inside, python=sys.executable))
    plan = replace(PLAN, container=str(tmp_path / "torch 2.sif"))
    run = tmp_path / "a run"
    submitted = submit(plan, TrainJob.of(small(300), dataset, run))
    until("steps", lambda: len(steps_logged(run)) > 3, 60)
    words = "sbatch --parsable --partition high --nodes 2 --exclusive --output /dev/null --wrap true"
    cluster.command(*words.split())
    facts = cluster.wait_for(submitted.job_id, "COMPLETED", 120)
    assert facts["Restarts"] == "1", logged(submitted)
    assert steps_logged(run) == list(range(1, 301))
    assert len(starts(run)) == 2
    assert "the batch script requeues the job" in logged(submitted) and "Traceback" not in logged(submitted)
    assert [restart for restart in re.findall(r"rank 0 of 2 on .*, restart (\d)", logged(submitted))] == [
        "0",
        "1",
    ]
