"""`status` tells running, finished, stopped, failed and lost runs apart, in words and by its exit status."""

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz import provenance
from hpcphotoz.__main__ import main
from hpcphotoz.heartbeat import Beat, Heartbeat, write_heartbeat
from hpcphotoz.locks.judgement import STALE_S, is_held
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.locks.owner import LockOwner
from hpcphotoz.world import World
from tests.helpers.commands import fails

ENDS: dict[str, tuple[dict[str, Any] | None, int, str]] = {
    "finished": ({"outcome": "finished", "reason": None, "step": 9}, 0, "finished at step 9"),
    "stopped": (
        {"outcome": "stopped", "reason": "SIGTERM received", "step": 4},
        75,
        ": it was cancelled, or told to stop (SIGTERM); saved: the same command goes on",
    ),
    "failed": ({"outcome": "failed", "reason": "not finite"}, 1, ": not finite; newest"),
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


def test_a_failed_run_without_a_checkpoint_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "run", ENDS["failed"][0])
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert main(["status", str(run)]) == 1
    assert capsys.readouterr().out.endswith(": not finite; no checkpoint; starts: 2\n")


def test_a_locked_run_is_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path / "run", None)
    lock = run / "logs" / "lock"
    assert not is_held(lock)
    with lock_file(lock, "busy", "wait"):
        assert main(["status", str(run)]) == 0
        assert ": running on " in capsys.readouterr().out
    lock.touch()  # left behind by a killed process
    assert not is_held(lock) and main(["status", str(run)]) == 1


def test_the_heartbeat_tells_the_step_of_a_running_run_and_its_silent_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, now = begun(tmp_path / "run", None), time.time()
    host, pid = socket.gethostname(), os.getpid()
    beats = [Beat(rank, host, pid + rank, "rank", 17, "passes", now - 10, now) for rank in range(2)]
    hung = replace(beats[1], time=now - 100)
    earlier = [replace(beat, pid=1, step=99) for beat in beats]
    with lock_file(run / "logs" / "lock", "busy", "wait"):
        for time_s, ranks, said in (
            (now, beats, " at step 17; starts: 2"),
            (now, [beats[0], hung], f" at step 17: rank 1 on {host} (process {pid + 1}) is silent since "),
            # Rank 0 is stopped: nobody writes the file any more.
            (now - 100, [replace(beats[0], time=now - 100), hung], f": rank 0 on {host} (process {pid}) is "),
            # It has ended, and its process is about to.
            (now - 100, [replace(beats[0], time=now - 100, phase="ended")], " at step 17; starts: 2"),
            (
                now,
                earlier,
                "+0000 and resumes from step 4; starts: 2",
            ),  # of the start before, while this one prepares itself
            (now, [], "+0000 and resumes from step 4; starts: 2"),
            # It has read no step yet.
            (now, [replace(beats[0], step=0, phase="starting")], " and resumes from step 4; starts: 2"),
        ):
            write_heartbeat(run, Heartbeat(time_s, 5.0, tuple(ranks)))
            assert main(["status", str(run)]) == 0
            assert said.replace("+0000", time.strftime("%z")) in capsys.readouterr().out


def test_a_run_that_prepares_itself_is_running_and_not_what_it_was_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "again", ENDS["stopped"][0])
    (tmp_path / "first" / "logs").mkdir(parents=True)
    for name, starts, step in (("again", 2, 4), ("first", 0, None)):
        with lock_file(tmp_path / name / "logs" / "lock", "busy", "wait"):
            assert main(["status", str(tmp_path / name), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["state"], facts["reason"], facts["step"]) == ("running", None, step)
        assert (facts["starts"], facts["host"]) == (starts, socket.gethostname())


@pytest.mark.parametrize("text", ["", "\0" * 900, '{"starts": [{"time": "20', "[]", '{"starts": [1]}'])
def test_a_damaged_record_is_said_and_kept_aside(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = begun(tmp_path / "run", None)
    (run / "provenance.json").write_text(text)
    fails(capsys, ["status", run], "provenance.json: damaged: the next start keeps it aside")
    provenance.record_end(run, "failed", "of no start")
    provenance.record_start(run, World(), {})
    assert len(provenance.read_starts(run)) == 1 and "kept as provenance.json.damaged" in caplog.text
    assert (run / "provenance.json.damaged").read_text() == text


def test_a_process_ends_its_own_start_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose lock was taken over must not speak for the process that goes on."""
    run = begun(tmp_path / "run", None)
    monkeypatch.setattr("os.getpid", lambda: 1)
    provenance.record_end(run, "failed", "its lock was taken over")
    assert "end" not in provenance.read_starts(run)[-1]


def test_the_lock_of_another_host_counts_where_flock_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "run", None)
    lock = run / "logs" / "lock"
    lock.touch()
    owner = LockOwner.of_this_process(lock, lock.stat().st_ino)
    lock.write_text(replace(owner, host="node07", machine="node07 boot pid:[1]").json)
    assert main(["status", str(run)]) == 0 and ": running on " in capsys.readouterr().out
    old = lock.stat().st_mtime - 2 * STALE_S
    os.utime(lock, (old, old))
    assert main(["status", str(run)]) == 1


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["status", tmp_path], "no training has begun in this folder")
