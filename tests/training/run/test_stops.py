"""Real runs that are asked to stop: all ranks leave with status 75 after the same step; the run goes on."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.launch.follow.status import read_status
from hpcphotoz.provenance import read_starts
from hpcphotoz.training.run import checkpoint
from tests.helpers import ranks
from tests.helpers.commands import fails
from tests.helpers.training.runs import arguments

LONG = {"epochs": 4000, "log_steps": 1, "checkpoint_steps": 10**6, "validation": 0}


def saved_step(run: Path) -> int:
    newest = checkpoint.latest(run)
    assert newest is not None
    return int(checkpoint.load(newest)["step"])


def status(run: Path) -> tuple[int, dict[str, Any]]:
    """Exit status and answer of `hpcphotoz status`."""
    found = read_status(run)
    return found.exit_status, asdict(found)


@pytest.mark.parametrize("name", [pytest.param("SIGUSR1", marks=pytest.mark.slow), "SIGTERM"])
def test_a_signalled_process_saves_and_leaves_with_75(name: str, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = ranks.start(1, arguments(dataset, run, tmp_path, **LONG))
    ranks.wait_until(lambda: len(ranks.curve(run)) >= 2, running)
    assert status(run)[1]["state"] == "running"
    running[0].send_signal(signal.Signals[name])
    ((found, said, _),) = ranks.finish(running)
    assert found == os.EX_TEMPFAIL == 75
    step = saved_step(run)
    assert f"{name} received: saved and stopped after step {step} of " in said
    assert ranks.curve(run)[-1][0] == step
    told, facts = status(run)
    assert (told, facts["state"], facts["step"]) == (75, "stopped", step)
    assert facts["reason"] == f"{name} received"


@pytest.mark.slow
def test_a_stop_file_stops_two_ranks_and_keeps_them_stopped(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = arguments(dataset, run, tmp_path, **LONG)
    running = ranks.start(2, words)
    ranks.wait_until(lambda: len(ranks.curve(run)) >= 2, running)
    (run / "STOP").touch()
    results = ranks.finish(running)
    assert [found for found, _, _ in results] == [75, 75], results
    step = saved_step(run)
    assert f"file STOP found (remove it to go on): saved and stopped after step {step} of " in results[0][1]
    logs = [(run / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert [re.findall(r"stopped after step (\d+)", log) for log in logs] == [[str(step)]] * 2
    fails(capsys, [*words], "this file keeps the run stopped: remove it")
    assert len(read_starts(run)) == 1 and saved_step(run) == step
    (run / "STOP").unlink()
    assert main([*words, "--run.max_steps", str(step + 1)]) == 0
    assert [step for step, _ in ranks.curve(run)] == list(range(1, step + 2))
    facts = status(run)[1]
    assert (facts["state"], facts["step"], facts["starts"]) == ("finished", step + 1, 2)


@pytest.mark.slow
def test_twice_the_signal_ends_a_rank_that_waits_for_a_hung_one(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = ranks.start(2, arguments(dataset, run, tmp_path, **LONG | {"checkpoint_steps": 2}))
    ranks.wait_until(lambda: len(ranks.curve(run)) >= 3, running)
    running[1].send_signal(signal.SIGSTOP)

    def ended() -> bool:
        running[0].send_signal(signal.SIGTERM)
        return running[0].poll() is not None

    try:
        ranks.wait_until(ended, running)
    finally:
        running[1].kill()
    (first, _, error), _ = ranks.finish(running)
    assert first == 128 + signal.SIGTERM
    assert "SIGTERM received again: ended without saving" in error
    assert saved_step(run) % 2 == 0, "no checkpoint but the regular ones"
    told, facts = status(run)
    assert (told, facts["state"]) == (1, "lost")


@pytest.mark.slow
def test_a_spent_budget_leaves_with_75_and_under_torchrun_with_0(dataset: Path, tmp_path: Path) -> None:
    """Torchrun takes 75 for a failure: it would start the run again, or end with a traceback."""
    for own, wanted in (({}, 75), ({"TORCHELASTIC_RUN_ID": "x"}, 0)):
        run = tmp_path / f"run{wanted}"
        words = [*arguments(dataset, run, tmp_path, **LONG), "--run.wall_minutes", "1e-9"]
        ((found, said, error),) = ranks.finish(ranks.start(1, words, [own]))
        assert found == wanted, error
        assert "wall-time budget spent: saved and stopped after step 1 of" in said
        assert status(run)[0] == 75


@pytest.mark.slow
def test_torchrun_reports_no_failure_and_does_not_restart(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    words = [*arguments(dataset, run, tmp_path, **LONG), "--run.wall_minutes", "1e-9"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "hpcphotoz", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(read_starts(run)) == 1 and status(run)[0] == 75


def test_a_failure_is_recorded_as_such(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = arguments(dataset, run, tmp_path, **LONG | {"learning_rate": 1e30, "warmup_steps": 0})
    ((found, _, error),) = ranks.finish(ranks.start(1, words))
    assert found == 1, error
    told, facts = status(run)
    assert (told, facts["state"]) == (1, "failed") and facts["reason"].startswith("the ")
