"""Submission without a cluster: the sbatch script as golden text, and what sbatch receives."""

import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpcphotoz.config import Config
from hpcphotoz.errors import BadInput
from hpcphotoz.launch import slurm, snapshot
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.request.plan import LaunchPlan
from tests.helpers.launch.golden import template_of_end
from tests.helpers.launch.runs import Install

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=cosmo
#SBATCH --chdir={code}
#SBATCH --constraint=ib
#SBATCH --cpus-per-task=8
#SBATCH --exclude=node7
#SBATCH --exclusive
#SBATCH --gpus-per-node=h100:4
#SBATCH --job-name=hpcphotoz
#SBATCH --mem=128G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output={launch}/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=photoz
#SBATCH --signal=USR2@300
#SBATCH --time=20:00:00

# setup
module load cuda
set +e; echo "hpcphotoz: start ${{SLURM_RESTART_COUNT:-0}} on $SLURM_JOB_NODELIST"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {launch}/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=8 --wait=0 \
--export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' {python} -u -m submitit.core._submit {launch}


""" + template_of_end()
PLAN = LaunchPlan(
    nodes=2,
    gpus_per_node="h100:4",
    cpus_per_task=8,
    mem="128G",
    time="20:00:00",
    signal_delay_s=300,
    partition="gpu",
    account="cosmo",
    qos="long",
    constraint="ib",
    exclude="node7",
    setup=("module load cuda",),
    extra=("reservation=photoz", "--exclusive"),
)
GOLDEN_MINIMAL = """\
#!/bin/bash

# Parameters
#SBATCH --chdir={code}
#SBATCH --cpus-per-task=2
#SBATCH --job-name=hpcphotoz
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output={launch}/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
set +e; echo "hpcphotoz: start ${{SLURM_RESTART_COUNT:-0}} on $SLURM_JOB_NODELIST"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {launch}/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=2 --wait=0 \
--export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' {python} -u -m submitit.core._submit {launch}


""" + template_of_end()
# Variables of a user's shell that contradict PLAN.
OVERRIDING = [
    *("SBATCH_ACCOUNT", "SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SBATCH_GPUS_PER_TASK", "SBATCH_JOB_NAME"),
    *("SBATCH_MEM_PER_CPU", "SBATCH_NO_REQUEUE", "SBATCH_OUTPUT", "SBATCH_PARTITION", "SBATCH_RESERVATION"),
    *("SBATCH_SIGNAL", "SBATCH_TIMELIMIT", "SBATCH_WAIT", "SRUN_EXPORT_ENV"),
]


@pytest.mark.parametrize(("plan", "text"), [(PLAN, GOLDEN), (LaunchPlan(), GOLDEN_MINIMAL)])
def test_dry_run_prints_the_script_without_slurm_and_writes_nothing(
    plan: LaunchPlan, text: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = TrainJob.of(Config(), dataset, tmp_path / "run")
    launch = tmp_path / "run" / "launch"
    expected = text.format(launch=launch, code=snapshot.folder(launch), python=shlex.quote(sys.executable))
    assert slurm.dry_run(plan, job) == expected
    assert not list(tmp_path.iterdir())


def test_a_name_with_spaces_is_quoted(job: TrainJob) -> None:
    script = slurm.dry_run(LaunchPlan(), job)
    assert f"#SBATCH --output='{job.out}/launch/%j_0_log.out'\n" in script
    (srun,) = [line for line in script.splitlines() if line.startswith("srun ")]
    assert shlex.split(srun)[-1] == f"{job.out}/launch"


def test_a_refusal_of_sbatch_is_one_line_and_leaves_no_job_behind(
    job: TrainJob, install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    install("srun", "exit 1")
    install("sbatch", "echo 'sbatch: error: invalid partition\nsbatch: error: Batch job failed' >&2; exit 1")
    with pytest.raises(BadInput) as refusal:
        slurm.submit(LaunchPlan(), job)
    expected = "sbatch refused the job: invalid partition; Batch job failed: give --partition, --account and"
    assert str(refusal.value).startswith(expected)
    assert capfd.readouterr().err == ""
    assert not Path(job.out).exists()


def test_arguments_of_sbatch(
    job: TrainJob, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("srun", "exit 1")
    install("scontrol", "exit 1")  # the real one looks for a cluster of this SLURM_CONF for half a minute
    install("sbatch", f"env > '{tmp_path}/env'; echo 'Submitted batch job 7'")
    for name in (
        "RANK",
        "MASTER_ADDR",
        "SLURM_NTASKS",
        "SLURM_CPUS_PER_TASK",
        "PALS_LOCAL_RANKID",
        "SLURM_CONF",
        "SBATCH_MAIL_USER",
        *OVERRIDING,
    ):
        monkeypatch.setenv(name, "1")
    said: list[str] = []
    submitted = slurm.submit(PLAN, job, said.append)
    assert said == [f"{', '.join(OVERRIDING)} of the environment: left out, the options of this launch hold"]
    assert submitted == slurm.SubmittedJob("7", Path(job.out) / "launch")
    assert (submitted.logs / "7_submission.sh").read_text() == slurm.dry_run(PLAN, job)
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert {"SLURM_CONF", "SBATCH_MAIL_USER"} <= names
    assert not names & {"RANK", "MASTER_ADDR", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK", "PALS_LOCAL_RANKID"}
    assert not names & set(OVERRIDING)
    assert os.environ["RANK"] == "1"
    stored = (submitted.logs / "7_submitted.pkl").read_bytes()
    assert len(stored) < 4096
    placed = pickle.loads(stored).function
    assert (placed.code, placed.cpus) == (str(snapshot.folder(submitted.logs)), 8)
    assert placed.device == "cuda", "GPUs were asked for"


def test_defaults_of_the_shell_apply_where_the_plan_has_no_value(
    job: TrainJob, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("srun", "exit 1")
    install("sbatch", f"env > '{tmp_path}/env'; echo 'Submitted batch job 7'")
    for name in ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_TIMELIMIT"):
        monkeypatch.setenv(name, "1")
    said: list[str] = []
    slurm.submit(LaunchPlan(), job, said.append)
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert {"SBATCH_ACCOUNT", "SBATCH_PARTITION"} <= names and "SBATCH_TIMELIMIT" not in names
    assert len(said) == 1 and said[0].startswith("SBATCH_TIMELIMIT of the environment")


def test_the_signal_does_not_depend_on_the_environment(dataset: Path) -> None:
    """The trainer handles USR2; submitit would ask Slurm for the signal of this variable."""
    script = (
        "from pathlib import Path\nfrom hpcphotoz.config import Config\n"
        "from hpcphotoz.launch import job, slurm\nfrom hpcphotoz.launch.request import plan\n"
        f"run = job.TrainJob.of(Config(), Path({str(dataset)!r}), Path('r'))\n"
        "print(slurm.dry_run(plan.LaunchPlan(), run))"
    )
    env = {**os.environ, "SUBMITIT_PREEMPT_SIGNAL": "USR1"}
    words = [sys.executable, "-c", script]
    shown = subprocess.run(words, env=env, check=True, timeout=60, capture_output=True, text=True).stdout
    assert "#SBATCH --signal=USR2@120\n" in shown and "USR1" not in shown
