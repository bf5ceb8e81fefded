"""Launching: the sbatch script by golden text, refusals, and real two-rank runs on this machine."""

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from hpcphotoz import cli
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.errors import BadInput
from hpcphotoz.launch import slurm, snapshot
from hpcphotoz.launch.job import TrainJob, _master_port
from hpcphotoz.launch.slurm import LaunchPlan
from hpcphotoz.training.run import run_folder
from hpcphotoz.training.trainer import train
from tests.helpers.datasets import make_dataset
from tests.helpers.slurm import until

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=cosmo
#SBATCH --chdir={code}
#SBATCH --constraint=h100
#SBATCH --cpus-per-task=8
#SBATCH --exclude=node7
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --job-name=hpcphotoz
#SBATCH --mem=131072M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output={launch}/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=photoz
#SBATCH --signal=USR2@300
#SBATCH --time=1200

# setup
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {launch}/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=8 --wait=0 \
--export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' {python} -u -m submitit.core._submit {launch}
"""
PLAN = LaunchPlan(
    nodes=2,
    gpus_per_node=4,
    cpus_per_task=8,
    mem_gb=128,
    time_minutes=1200,
    signal_delay_s=300,
    partition="gpu",
    account="cosmo",
    qos="long",
    constraint="h100",
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

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {launch}/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=2 --wait=0 \
--export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' {python} -u -m submitit.core._submit {launch}
"""
# What a user's shell may hold against PLAN.
OVERRIDING = [
    *("SBATCH_ACCOUNT", "SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SBATCH_GPUS_PER_TASK", "SBATCH_JOB_NAME"),
    *("SBATCH_MEM_PER_CPU", "SBATCH_NO_REQUEUE", "SBATCH_OUTPUT", "SBATCH_PARTITION", "SBATCH_RESERVATION"),
    *("SBATCH_SIGNAL", "SBATCH_TIMELIMIT", "SBATCH_WAIT", "SRUN_EXPORT_ENV"),
]
TWO_RANKS = LaunchPlan(tasks_per_node=2, cpus_per_task=1)
Install = Callable[[str, str], None]


def small(max_steps: int, **model: object) -> Config:
    """About 10 ms a step on two ranks; a line of metrics every step; no checkpoint but the last one."""
    return configure(
        "test",
        **{"width": 8, "bins": 20, **model, "validation": 0, "read_threads": 1},
        **{"epochs": 2000, "global_batch": 16, "max_steps": max_steps, "log_steps": 1},
        checkpoint_steps=10**6,
    )


def starts(run: Path) -> list[dict[str, Any]]:
    """What each start of a run recorded of itself."""
    found: list[dict[str, Any]] = json.loads((run / "provenance.json").read_text())["starts"]
    return found


def steps_logged(run: Path) -> list[int]:
    """The steps of metrics.jsonl; empty before the first."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line)["step"] for line in text[: text.rfind("\n") + 1].splitlines()]


def stopped_after(run: Path, ranks: int) -> set[str]:
    """The steps after which the ranks stopped, by their own logs."""
    logs = [(run / "logs" / f"rank-{rank}.log").read_text() for rank in range(ranks)]
    return {step for log in logs for step in re.findall(r"stopped after step (\d+)", log) or ["never"]}


@pytest.fixture
def job(dataset: Path, tmp_path: Path) -> TrainJob:
    return TrainJob.of(small(3), dataset, tmp_path / "a run")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a shell script of a given name first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.mark.parametrize(("plan", "text"), [(PLAN, GOLDEN), (LaunchPlan(), GOLDEN_MINIMAL)])
def test_dry_run_prints_the_script_without_slurm_and_writes_nothing(
    plan: LaunchPlan, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = TrainJob.of(Config(), tmp_path / "data", tmp_path / "run")
    launch = tmp_path / "run" / "launch"
    expected = text.format(launch=launch, code=snapshot.folder(launch), python=shlex.quote(sys.executable))
    assert slurm.dry_run(plan, job) == expected
    assert not list(tmp_path.iterdir())


def test_a_name_with_spaces_is_quoted(job: TrainJob) -> None:
    script = slurm.dry_run(LaunchPlan(), job)
    assert f"#SBATCH --output='{job.out}/launch/%j_0_log.out'\n" in script
    assert shlex.split(script.splitlines()[-1])[-1] == f"{job.out}/launch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "--nodes 0: must be at least 1"),
        ({"gpus_per_node": -1}, "--gpus-per-node -1: must be at least 0"),
        ({"cpus_per_task": 0}, "--cpus-per-task 0"),
        ({"time_minutes": 2, "signal_delay_s": 120}, "longer than the job's 2 minutes"),
        ({"extra": ("=3",)}, "write key=value"),
        ({"extra": ("a b=3",)}, "write key=value"),
        ({"extra": ("cpus_per_task=3",)}, "set by the launcher's own options"),
        ({"extra": ("--signal=USR1@5",)}, "set by the launcher's own options"),
        ({"extra": ("parti=debug",)}, "set by the launcher's own options"),  # sbatch would understand
        ({"extra": ("parsable",)}, "is no property of a job"),
        ({"extra": ("test-only",)}, "is no property of a job"),
        ({"extra": ("comment=a\n#SBATCH --uid=0",)}, "--extra 'comment=a\\n#SBATCH --uid=0': has a control"),
        ({"setup": ("module load cuda", "a\r\nb")}, "--setup 'a\\r\\nb': has a control character"),
        *(
            ({name: "a\ntouch /tmp/b"}, f"--{name.replace('_', '-')} 'a\\ntouch /tmp/b': has a control")
            for name in ("job_name", "partition", "account", "qos", "constraint", "exclude")
        ),
    ],
)
def test_plan_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        LaunchPlan(**options)  # type: ignore[arg-type]


def test_refusals_before_anything_is_queued(
    job: TrainJob, tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("sbatch", "echo 'Submitted batch job 7'")
    install("srun", "exit 1")
    with pytest.raises(BadInput, match="unfinished|not a dataset"):
        slurm.submit(LaunchPlan(), TrainJob.of(small(3), tmp_path, tmp_path / "run"))
    with pytest.raises(BadInput, match="a local launch has one node"):
        slurm.run_local(LaunchPlan(nodes=2), job)
    with pytest.raises(BadInput, match="choose another run folder"):
        slurm.dry_run(LaunchPlan(), TrainJob.of(small(3), tmp_path, tmp_path / "100%"))
    for name in ("a\nb", "a\tb", "a\x1bb"):
        with pytest.raises(BadInput, match="a control character in this name"):
            slurm.dry_run(LaunchPlan(), TrainJob.of(small(3), tmp_path, tmp_path / name))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="sbatch: not found"):
        slurm.submit(LaunchPlan(), job)
    monkeypatch.setitem(sys.modules, "submitit", None)
    for launch in (slurm.submit, slurm.dry_run, slurm.run_local):
        with pytest.raises(BadInput, match=re.escape("pip install 'hpcphotoz[launch]'")):
            launch(LaunchPlan(), job)
    assert not Path(job.out).exists()


SLURMS_OWN = {
    "mem_gb": 4.0,
    "time_minutes": 30,
    "signal_delay_s": 60,
    "job_name": "mine",
    **dict.fromkeys(("partition", "account", "qos", "constraint", "exclude"), "a"),
    "setup": ("module load cuda",),
    "extra": ("reservation=photoz",),
}


@pytest.mark.parametrize("name", SLURMS_OWN)
def test_a_local_launch_refuses_what_only_slurm_understands(name: str, job: TrainJob) -> None:
    plan = LaunchPlan(**{name: SLURMS_OWN[name]})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=f"--{name.replace('_', '-')}: means nothing on this machine"):
        slurm.run_local(plan, job)
    assert not Path(job.out).exists()


def test_a_run_folder_that_cannot_be_used_is_refused_at_submission(
    dataset: Path, tmp_path: Path, install: Install
) -> None:
    """And nothing is made in it."""
    install("sbatch", "echo 'Submitted batch job 7'")
    install("srun", "exit 1")
    copy = Path(shutil.copytree(dataset, tmp_path / "data"))
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints" / "step-00000001.pt").touch()
    (other / "config.toml").write_text(TrainJob.of(small(3, width=16), dataset, other).config)
    for launch in (slurm.submit, slurm.run_local):
        with pytest.raises(BadInput, match="is a dataset: choose another folder"):
            launch(LaunchPlan(), TrainJob.of(small(3), dataset, copy))
        with pytest.raises(BadInput, match=r"holds a run with another model.width \(16, now 8\)"):
            launch(LaunchPlan(), TrainJob.of(small(3), dataset, other))
    assert not (copy / "launch").exists() and not (other / "launch").exists()


def test_a_run_on_another_dataset_is_refused_at_submission(
    dataset: Path, tmp_path: Path, install: Install
) -> None:
    """And nothing is made in it."""
    install("sbatch", "echo 'Submitted batch job 7'")
    install("srun", "exit 1")
    run, other = tmp_path / "run", make_dataset(tmp_path / "other", n=64, shard_rows=32)
    train(small(1), dataset, run)
    for launch in (slurm.submit, slurm.run_local):
        with pytest.raises(BadInput, match=f"run: was trained on another dataset than {other}"):
            launch(LaunchPlan(), TrainJob.of(small(1), other, run))
    assert not (run / "launch").exists()


def test_a_run_of_a_settled_precision_is_launched_again_with_auto(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001.pt").touch()
    settled = TrainJob.of(small(3), dataset, run).config.replace('precision = "auto"', 'precision = "fp32"')
    assert 'precision = "fp32"' in settled
    (run / "config.toml").write_text(settled)
    run_folder.check(run, small(3))


def test_a_refusal_of_sbatch_is_one_line_and_leaves_no_job_behind(
    job: TrainJob, install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    install("srun", "exit 1")
    install("sbatch", "echo 'sbatch: error: invalid partition\nsbatch: error: Batch job failed' >&2; exit 1")
    with pytest.raises(BadInput) as refusal:
        slurm.submit(LaunchPlan(), job)
    expected = "sbatch refused the job: sbatch: error: invalid partition sbatch: error: Batch job failed"
    assert str(refusal.value) == expected
    assert capfd.readouterr().err == ""
    assert [path.name[:5] for path in (Path(job.out) / "launch").iterdir()] == ["code-"]


def test_what_is_submitted(
    job: TrainJob, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("srun", "exit 1")
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
    assert submitted == slurm.Submitted("7", Path(job.out) / "launch")
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


def test_defaults_of_the_shell_hold_where_the_plan_says_nothing(
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


def test_the_signal_does_not_depend_on_the_environment(tmp_path: Path) -> None:
    """The trainer handles USR2; submitit would ask Slurm for the signal of this variable."""
    script = (
        "from pathlib import Path\nfrom hpcphotoz.config import Config\n"
        "from hpcphotoz.launch import job, slurm\n"
        "print(slurm.dry_run(slurm.LaunchPlan(), job.TrainJob.of(Config(), Path('d'), Path('r'))))"
    )
    env = {**os.environ, "SUBMITIT_PREEMPT_SIGNAL": "USR1"}
    words = [sys.executable, "-c", script]
    shown = subprocess.run(words, env=env, check=True, timeout=60, capture_output=True, text=True).stdout
    assert "#SBATCH --signal=USR2@120\n" in shown and "USR1" not in shown


def test_snapshot_is_a_copy_of_the_whole_package(tmp_path: Path) -> None:
    code = snapshot.take(tmp_path)
    assert code == snapshot.folder(tmp_path) == snapshot.take(tmp_path)
    for name in ("__main__.py", "launch/job.py", "kernels/reference.py", "recipes/standard.toml", "py.typed"):
        assert (code / "hpcphotoz" / name).is_file()
    assert not [path for path in code.rglob("*") if path.is_symlink() or path.name == "__pycache__"]
    assert list(tmp_path.iterdir()) == [code]


@pytest.mark.parametrize("what", ["changed", "added", "removed"])
def test_a_snapshot_that_was_changed_is_not_trusted(what: str, tmp_path: Path) -> None:
    code = snapshot.take(tmp_path)
    file = code / "hpcphotoz" / ("new.py" if what == "added" else "errors.py")
    if what == "removed":
        file.unlink()
    else:
        file.write_text("raise SystemExit\n")
    for use in (lambda: snapshot.take(tmp_path), lambda: snapshot.check(code)):
        with pytest.raises(BadInput, match=f"{code}: this code was changed"):
            use()


def test_a_link_to_nothing_is_left_out_of_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor's lock is one: .#step.py."""
    package = tmp_path / "hpcphotoz"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr("hpcphotoz.__file__", str(package / "__init__.py"))
    before = snapshot.folder(tmp_path)
    (package / ".#step.py").symlink_to("someone@host.1234:1700000000")
    assert snapshot.take(tmp_path) == before == snapshot.take(tmp_path)
    assert [path.name for path in (before / "hpcphotoz").iterdir()] == ["__init__.py"]


def test_a_snapshot_that_has_run_is_trusted(tmp_path: Path) -> None:
    code = snapshot.take(tmp_path)
    words = [sys.executable, "-m", "hpcphotoz", "--version"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(words, cwd=code, env=env, check=True, timeout=60, capture_output=True)
    assert list(code.rglob("*.pyc"))
    assert snapshot.take(tmp_path) == code


def test_the_port_is_not_one_that_the_system_hands_out_and_moves_on_a_restart() -> None:
    ports = {_master_port(str(job), str(restart)) for job in range(1000) for restart in range(3)}
    assert min(ports) >= 1024 and max(ports) < 32768
    assert len(ports) > 2500
    assert _master_port("7", "0") == _master_port("7", "0") != _master_port("7", "1")


@pytest.mark.parametrize(
    ("wanted", "given", "kept"),
    [
        (0, None, None),
        (0, "", ""),
        (0, "GPU-8f5d0c1e", "GPU-8f5d0c1e"),
        (2, None, "0,1"),
        (2, "GPU-8f,GPU-5d,GPU-0c", "GPU-8f,GPU-5d"),
        (1, "MIG-8f5d0c1e", "MIG-8f5d0c1e"),
        (2, "3, 1", "3,1"),
    ],
)
def test_visible_gpus_are_kept_as_they_are_named(wanted: int, given: str | None, kept: str | None) -> None:
    assert slurm._visible_gpus(wanted, given) == kept


@pytest.mark.parametrize("given", ["", "-1", "GPU-8f"])
def test_more_gpus_than_visible_are_refused(
    given: str, job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with pytest.raises(BadInput, match="--gpus-per-node 2: CUDA_VISIBLE_DEVICES names [01]"):
        slurm.run_local(LaunchPlan(gpus_per_node=2), job)
    assert not Path(job.out).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_gpus_that_are_not_here_are_not_replaced_by_cpus(job: TrainJob) -> None:
    with pytest.raises(BadInput, match="a GPU was asked for .* --device cpu"):
        slurm.run_local(LaunchPlan(gpus_per_node=2), job, lambda _: None)


def test_every_option_of_train_reaches_the_ranks(dataset: Path, tmp_path: Path) -> None:
    """Those of the configuration do by its text."""
    run = tmp_path / "run"
    given = {"--data": str(dataset), "--out": str(run), "--device": "cpu", "--profile": None}
    shown = cli._parser().parse_args(["train", "standard", "--data", "d", "--out", "r"])
    ours = {f"--{name}" for name in vars(shown) if "." not in name}
    assert ours - {"--command", "--function", "--config"} == set(given), "give it here, and to TrainJob"
    words = [word for pair in given.items() for word in pair if word is not None]
    with mock.patch.object(slurm, "submit") as submit:
        cli.run(["launch", "slurm", "--", "train", "standard", *words])
    job = submit.call_args.args[1]
    assert (job.data, job.out, job.device, job.profile) == (str(dataset), str(run), "cpu", True)
    assert job.command == ("hpcphotoz", "launch", "slurm", "--", "train", "standard", *words)


def test_the_job_unpickles_without_torch(job: TrainJob, tmp_path: Path) -> None:
    # A signal during these imports would be lost.
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    check = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check, tmp_path / "job"], check=True, timeout=60)


def test_requeues_are_bounded(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job.checkpoint().function == job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "9")
    assert job.checkpoint() is not None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "10")
    assert job.checkpoint() is None


LEAVING = """\
import os, signal, sys
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.training import trainer

class Late:  # deleted after Python has taken its signal handlers down
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGUSR2):
        kill(pid, number)

late = Late()
signal.signal(signal.SIGUSR2, print)
trainer.train = lambda *_: trainer.Outcome[sys.argv[1]]
TrainJob("", "", "")()
"""


@pytest.mark.parametrize(("rank", "outcome"), [(0, "FINISHED"), (1, "STOPPED")])
def test_a_rank_that_is_leaving_does_not_die_of_the_signal(rank: int, outcome: str) -> None:
    world = {"JOB_ID": "1", "NTASKS": "2", "GLOBALID": str(rank), "LOCALID": str(rank)}
    env = {**os.environ, "SUBMITIT_EXECUTOR": "local", **{f"SUBMITIT_LOCAL_{k}": v for k, v in world.items()}}
    subprocess.run([sys.executable, "-c", LEAVING, outcome], env=env, check=True, timeout=60)


def test_two_local_ranks_train_from_the_snapshot(job: TrainJob) -> None:
    said: list[str] = []
    job = replace(job, command=("hpcphotoz", "launch", "local"))
    assert slurm.run_local(TWO_RANKS, job, said.append) == 0
    run = Path(job.out)
    assert steps_logged(run) == [1, 2, 3]
    facts = [(start["world_size"], start["launcher"], start["command"]) for start in starts(run)]
    assert facts == [(2, "local", ["hpcphotoz", "launch", "local"])]
    (code,) = (run / "launch").glob("code-*")
    for rank in range(2):
        (log,) = (run / "launch").glob(f"*_{rank}_log.out")
        assert f"rank {rank} of 2 " in log.read_text()
        assert f"code {code}, restart 0" in log.read_text()
    assert f"logs in {run / 'launch'}" in said[0]


def test_a_failing_rank_is_reported(dataset: Path, tmp_path: Path) -> None:
    said: list[str] = []
    diverging = small(9, learning_rate=1e30, warmup_steps=0)
    assert slurm.run_local(TWO_RANKS, TrainJob.of(diverging, dataset, tmp_path / "run"), said.append) == 1
    assert re.search(r"rank \d failed: .*the loss is not finite", said[-1])
    assert f"{tmp_path}/run/launch" in said[-1]


def test_bad_input_of_a_rank_is_bad_input(dataset: Path, tmp_path: Path) -> None:
    job = TrainJob.of(small(3, z_max=0.1), dataset, tmp_path / "run")
    with pytest.raises(BadInput, match=r"^.*leaves the bins \[0.0, 0.1\)"):
        slurm.run_local(TWO_RANKS, job, lambda _: None)


START = """import pickle, sys
from hpcphotoz.launch import slurm
from tests.launch.test_launch import TWO_RANKS
sys.exit(slurm.run_local(TWO_RANKS, pickle.load(open(sys.argv[1], "rb"))))
"""


def started(job: TrainJob, folder: Path) -> subprocess.Popen[bytes]:
    """`run_local` in a process group of its own, as a shell would start it."""
    (folder / "job").write_bytes(pickle.dumps(job))
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", START, folder / "job"], cwd=root, process_group=0)


def pid_of_rank(rank: int, folder: Path) -> int:
    """The process of one local rank, found by what submitit put into its environment."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"SUBMITIT_LOCAL_GLOBALID={rank}".encode() in words and str(folder).encode() in command:
            return int(process.name)
    raise LookupError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the rank's process in /proc")
def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_the_run_goes_on(
    dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launched = started(TrainJob.of(small(400), dataset, run), tmp_path)
    until("steps", lambda: len(steps_logged(run)) > 3, 60)
    os.kill(pid_of_rank(0, run), signal.SIGUSR2)
    assert launched.wait(timeout=90) == 0
    (step,) = stopped_after(run, 2)
    assert [(start["step"], start["world_size"]) for start in starts(run)] == [(0, 2), (int(step), 2)]
    assert 3 < int(step) < 400
    assert steps_logged(run) == list(range(1, 401))


@pytest.mark.parametrize(
    "kind",
    ["Ctrl-C", pytest.param("closed terminal", marks=pytest.mark.slow), "hangup of the launcher alone"],
)
def test_what_stops_the_launcher_saves_and_stops_its_ranks(kind: str, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched = started(TrainJob.of(small(20_000), dataset, run), tmp_path)
    until("steps", lambda: len(steps_logged(run)) > 3, 60)
    if kind == "Ctrl-C":
        os.killpg(launched.pid, signal.SIGINT)
    elif kind == "closed terminal":
        os.killpg(launched.pid, signal.SIGHUP)
    else:
        launched.send_signal(signal.SIGHUP)
    assert launched.wait(timeout=60) == 130
    (step,) = stopped_after(run, 2)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{int(step):08d}.pt"]
    assert len(starts(run)) == 1
