"""Real runs of two ranks on this machine."""

import os
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.local import run_local
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.locks.lock import lock_file
from tests.helpers.launch.cluster import until
from tests.helpers.launch.runs import TWO_RANKS, small, starts, steps_logged, stopped_after
from tests.helpers.paths import ROOT

SLURMS_OWN = {
    "mem": "4G",
    "time": "30",
    "signal_delay_s": 60,
    "job_name": "mine",
    **dict.fromkeys(("partition", "account", "qos", "constraint", "exclude"), "a"),
    "setup": ("module load cuda",),
    "conda": "photoz",
    "srun": ("--cpu-bind=cores",),
    "extra": ("reservation=photoz",),
}


@pytest.mark.parametrize("name", SLURMS_OWN)
def test_a_local_launch_refuses_what_only_slurm_understands(name: str, job: TrainJob) -> None:
    plan = LaunchPlan(**{name: SLURMS_OWN[name]})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=f"--{name.replace('_', '-')}: means nothing on this machine"):
        run_local(plan, job)
    assert not Path(job.out).exists()


def test_two_local_ranks_train_from_the_snapshot(job: TrainJob) -> None:
    said: list[str] = []
    job = replace(job, command=("hpcphotoz", "launch", "local"))
    assert run_local(TWO_RANKS, job, said.append) == 0
    run = Path(job.out)
    assert steps_logged(run) == [1, 2, 3]
    facts = [(start["world_size"], start["launcher"], start["command"]) for start in starts(run)]
    assert facts == [(2, "local", ["hpcphotoz", "launch", "local"])]
    (code,) = (run / "launch").glob("code-*")
    for rank in range(2):
        (log,) = (run / "launch").glob(f"*_{rank}_log.out")
        assert f"rank {rank} of 2 " in log.read_text()
        assert f"code {code}, restart 0" in log.read_text()
    assert said[0].startswith("2 ranks, job ") and f"logs in {run / 'launch'}" in said[0]
    assert "waits for its end: Ctrl-C saves and stops it" in said[0] and said[1:] == ["finished"]


def test_a_run_in_which_a_process_trains_is_not_begun_again(job: TrainJob) -> None:
    lock = Path(job.out) / "logs" / "lock"
    lock.parent.mkdir(parents=True)
    with lock_file(lock, "held", "wait"), pytest.raises(BadInput, match="another process trains in it"):
        run_local(TWO_RANKS, job)
    assert not (Path(job.out) / "launch").exists()


@pytest.mark.slow
def test_a_failing_rank_is_reported(dataset: Path, tmp_path: Path) -> None:
    said: list[str] = []
    diverging = small(9, learning_rate=1e30, warmup_steps=0, max_skipped_steps=0)
    assert run_local(TWO_RANKS, TrainJob.of(diverging, dataset, tmp_path / "run"), said.append) == 1
    assert re.search(r"rank \d failed: .*is not finite", said[-1])
    assert f"{tmp_path}/run/launch" in said[-1]


def test_bad_input_of_a_rank_is_bad_input(dataset: Path, tmp_path: Path) -> None:
    job = TrainJob.of(small(3, z_max=0.1), dataset, tmp_path / "run")
    with pytest.raises(BadInput, match=r"^.*leaves the bins \[0.0, 0.1\)"):
        run_local(TWO_RANKS, job, lambda _: None)


START = """import pickle, sys
from hpcphotoz.launch.local import run_local
from tests.helpers.launch.runs import TWO_RANKS
sys.exit(run_local(TWO_RANKS, pickle.load(open(sys.argv[1], "rb"))))
"""


def started(job: TrainJob, folder: Path) -> subprocess.Popen[bytes]:
    """Start `run_local` in its own process group, like a shell."""
    (folder / "job").write_bytes(pickle.dumps(job))
    return subprocess.Popen([sys.executable, "-c", START, folder / "job"], cwd=ROOT, process_group=0)


def pid_of_rank(rank: int, folder: Path) -> int:
    """The process id of one local rank, found by submitit's variables in its environment."""
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Ctrl-C", "closed terminal", "hangup of the launcher alone"])
def test_stopping_the_launcher_saves_and_stops_its_ranks(kind: str, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched = started(TrainJob.of(small(20_000), dataset, run), tmp_path)
    until("steps", lambda: len(steps_logged(run)) > 3, 60)
    if kind == "Ctrl-C":
        os.killpg(launched.pid, signal.SIGINT)
    elif kind == "closed terminal":
        os.killpg(launched.pid, signal.SIGHUP)
    else:
        launched.send_signal(signal.SIGHUP)
    assert launched.wait(timeout=60) == 75
    (step,) = stopped_after(run, 2)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{int(step):08d}.pt"]
    assert len(starts(run)) == 1


@pytest.mark.slow
def test_a_second_interrupt_ends_the_ranks_without_saving(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    long_steps = small(20_000, fraction=1.0, method="pgd", steps=2000)
    launched = started(TrainJob.of(long_steps, dataset, run), tmp_path)
    until("a start", (run / "provenance.json").exists, 60)

    def ended() -> bool:
        os.killpg(launched.pid, signal.SIGINT)
        return launched.poll() is not None

    until("the end", ended, 60)
    # A shell shows 130 for both; one signal more may come while Python ends.
    assert launched.returncode in (128 + signal.SIGINT, -signal.SIGINT)
    assert not list((run / "checkpoints").iterdir())
