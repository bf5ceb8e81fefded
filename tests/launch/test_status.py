"""`status` tells running, finished, stopped, failed and lost runs apart, in words and by its exit status."""

import json
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz import provenance
from hpcphotoz.__main__ import main
from hpcphotoz.locks.judgement import is_held
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.world import World
from tests.helpers.commands import fails

ENDS: dict[str, tuple[dict[str, Any] | None, int, str]] = {
    "finished": ({"outcome": "finished", "reason": None, "step": 9}, 0, "finished at step 9"),
    "stopped": (
        {"outcome": "stopped", "reason": "SIGTERM received", "step": 4},
        75,
        ": SIGTERM received; saved: the same command goes on",
    ),
    "failed": ({"outcome": "failed", "reason": "Diverged: not finite"}, 1, ": Diverged: not finite; newest"),
    "lost": (
        None,
        1,
        ": killed, or signalled twice; newest checkpoint step-00000004.pt",
    ),
}


def begun(run: Path, end: dict[str, Any] | None) -> Path:
    """A run folder with two starts, of which the first was stopped."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "logs").mkdir()
    for step in (2, 4):
        (run / "checkpoints" / f"step-{step:08d}.pt").touch()
    provenance.record_start(run, World(), {})
    provenance.record_end(run, "stopped", "SIGUSR2 received", step=2)
    provenance.record_start(run, World(), {"step": 2})
    if end:
        provenance.record_end(run, **end)
    return run


@pytest.mark.parametrize("state", ENDS)
def test_the_last_start_decides(state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end, status, said = ENDS[state]
    run = begun(tmp_path / "run", end)
    assert main(["status", str(run)]) == status
    text = capsys.readouterr().out
    assert text.startswith(f"{run}: ") and said in text and text.endswith("; starts: 2\n")
    assert main(["status", str(run), "--json"]) == status
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["exit_status"], facts["starts"]) == (state, status, 2)


def test_a_locked_run_is_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path / "run", None)
    lock = run / "logs" / "lock"
    assert not is_held(lock)
    with lock_file(lock, "busy", "wait"):
        assert main(["status", str(run)]) == 0
        assert ": running on " in capsys.readouterr().out
    lock.touch()  # left behind by a killed process
    assert not is_held(lock) and main(["status", str(run)]) == 1


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["status", tmp_path], "no training has begun in this folder")
