"""A stale lock is known by its process, its place or its age, and one process takes it over."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.locks import judgement
from hpcphotoz.locks.judgement import Verdict, is_held, judge, look_at
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.locks.owner import LockOwner

TIMEOUT_S = 60
HOUR_NS = 3600 * 10**9


def leave(path: Path, age_ns: int = 0, **facts: Any) -> LockOwner:
    """A lock file as a process leaves or holds it, made without its `flock`."""
    path.touch()
    owner = replace(LockOwner.of_this_process(path, path.stat().st_ino), **facts)
    path.write_text(owner.json)
    mtime = path.stat().st_mtime_ns - age_ns
    os.utime(path, ns=(mtime, mtime))
    return owner


def verdict(path: Path) -> Verdict:
    seen = look_at(path)
    assert seen is not None
    return judge(path, seen)[0]


def no_flock(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture(params=[True, False], ids=["flock in a host", "no flock"])
def foreign(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose `flock` does not reach other hosts, with short intervals."""
    monkeypatch.setattr(judgement, "REFRESH_S", 0.2)
    monkeypatch.setattr(judgement, "STALE_S", 1.0)
    if not request.param:
        monkeypatch.setattr(fcntl, "flock", no_flock)


def test_process_and_start_decide_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    owner = leave(path, age_ns=HOUR_NS)
    assert verdict(path) is Verdict.HELD, "however old"
    leave(path, started=(owner.started or 0) + 1)
    assert verdict(path) is Verdict.STALE, "another process with its number"
    leave(path, pid=2**22 + 1)  # above the largest number of a process
    assert verdict(path) is Verdict.STALE
    leave(path, machine=f"{socket.gethostname()} another-boot pid:[1]")
    assert verdict(path) is Verdict.UNKNOWN, "a container, or before the machine was started again"


def test_a_copied_folder_is_free_and_a_moved_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "lock"
    leave(path)  # the process lives
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy")) / "lock"
    assert verdict(path) is Verdict.HELD and verdict(copy) is Verdict.STALE
    with lock_file(copy, "busy", "wait"):
        assert f"it is a copy of {path}\n" in capsys.readouterr().err
    moved = (tmp_path / "run").rename(tmp_path / "moved") / "lock"
    assert verdict(moved) is Verdict.HELD


@pytest.mark.parametrize("text", ["", "held\n", "{}", '{"token": 1}', "[" * 9999, "\0" * 400])
def test_a_lock_that_does_not_name_its_owner_is_taken_over(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as the empty file of an earlier version, whose process has ended."""
    monkeypatch.setattr(judgement, "_BEING_MADE_S", 0.1)
    path = tmp_path / "lock"
    path.write_text(text)
    assert not is_held(path)
    with lock_file(path, "busy", "wait"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert "took over the lock of a process of an earlier version" in capsys.readouterr().err


def test_an_earlier_version_that_runs_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_held(path)
        with pytest.raises(BadInput, match="^busy: wait$"), lock_file(path, "busy", "wait"):
            pass


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("skew_ns", [0, -HOUR_NS, HOUR_NS], ids=["one clock", "behind", "ahead"])
def test_a_holder_on_another_host_is_known_by_its_signs_of_life(tmp_path: Path, skew_ns: int) -> None:
    """Also on a file system that takes the times of hosts whose clocks differ."""
    path, ended = tmp_path / "lock", threading.Event()
    leave(path, age_ns=-skew_ns, host="node07", machine="node07 boot pid:[1]")

    def live() -> None:
        while not ended.wait(0.1):
            now = path.stat().st_mtime_ns + 10**8
            os.utime(path, ns=(now, now))

    holder = threading.Thread(target=live)
    holder.start()
    try:
        with pytest.raises(BadInput, match=r"busy \(.* on node07, "), lock_file(path, "busy", "wait"):
            pass
        assert path.exists() and (skew_ns < 0 or is_held(path))
    finally:
        ended.set()
        holder.join(TIMEOUT_S)


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("age_ns", [0, HOUR_NS, -HOUR_NS], ids=["just died", "an hour ago", "clock ahead"])
def test_a_lock_of_another_host_without_signs_of_life_is_taken_over(
    tmp_path: Path, age_ns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    leave(path, age_ns, host="node07", machine="node07 boot pid:[1]")
    assert is_held(path) is (age_ns <= 0)
    with lock_file(path, "busy", "wait"):
        said = capsys.readouterr().err.splitlines()
    assert "on node07" in said[0] and "waiting up to " in said[0]
    assert "took over the lock of" in said[1] and "no sign of life for" in said[1] and len(said) == 2


def test_the_age_of_a_lock_in_a_folder_that_may_not_be_written_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement, "REFRESH_S", 0.1)
    monkeypatch.setattr(judgement, "_clock_ns", lambda _: None)
    leave(tmp_path / "lock", -HOUR_NS, host="node07", machine="node07 boot pid:[1]")
    assert not is_held(tmp_path / "lock")


def _contend(path: Path, flock: bool, barrier: Any, hold: Any) -> bool:
    """Take the lock at the same time as others, and hold it until all have tried."""
    if not flock:
        fcntl.flock = no_flock
    barrier.wait(TIMEOUT_S)
    try:
        with lock_file(path, "busy", "wait"):
            hold.wait(TIMEOUT_S)
            return True
    except BadInput:
        hold.wait(TIMEOUT_S)
        return False


@pytest.mark.parametrize("flock", [True, False])
def test_one_of_several_processes_takes_a_stale_lock_over(flock: bool, tmp_path: Path) -> None:
    path, spawn = tmp_path / "lock", multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(4, spawn) as pool:
        for _ in range(25):
            leave(path, pid=2**22 + 1)
            barrier, hold = manager.Barrier(4), manager.Barrier(4)
            tries = [pool.submit(_contend, path, flock, barrier, hold) for _ in range(4)]
            assert sum(each.result(TIMEOUT_S) for each in tries) == 1
    assert not list(tmp_path.iterdir())


def test_a_takeover_that_was_killed_half_way_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    stale = leave(path, pid=2**22 + 1)
    leave(path.with_name(f"lock.{stale.token}.taken"), pid=2**22 + 2)
    with lock_file(path, "busy", "wait"):
        pass
    assert not list(tmp_path.iterdir())


HOLD = """
import fcntl, sys, threading
from pathlib import Path
from hpcphotoz.locks import judgement
from hpcphotoz.locks.lock import lock_file
def no_flock(*_):
    raise OSError(37, "No locks available")
fcntl.flock, judgement.REFRESH_S, judgement.STALE_S = no_flock, 0.2, 1.0
with lock_file(Path(sys.argv[1]), "busy", "wait") as held:
    print("held", flush=True)
    while held.problem is None:
        pass
    print(held.problem, flush=True)
"""


def test_two_hosts_without_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other host is a namespace of processes and names: numbers of its processes mean nothing here."""
    for name, value in (("REFRESH_S", 0.2), ("STALE_S", 1.0)):
        monkeypatch.setattr(judgement, name, value)
    monkeypatch.setattr(fcntl, "flock", no_flock)
    path = tmp_path / "lock"
    host = ["unshare", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*host, "true"], capture_output=True, timeout=99).returncode
    ):
        pytest.skip("another namespace of processes needs root and unshare")
    words = [*host, "sh", "-c", 'hostname node07 && exec "$@"', "sh", sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            assert is_held(path)
            with (
                pytest.raises(BadInput, match=" on node07, process 1, since "),
                lock_file(path, "busy", "wait"),
            ):
                pass
            (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            os.kill(child, signal.SIGSTOP)
            with lock_file(path, "busy", "wait"):
                assert "took over the lock of root on node07" in capsys.readouterr().err
                os.kill(child, signal.SIGCONT)
                assert f"process {os.getpid()}, since " in process.stdout.readline(), "it notices"
                assert process.wait(TIMEOUT_S) == 0 and is_held(path), "and leaves the lock of another"
        finally:
            process.kill()
