"""The lock file has one holder at a time, with `flock` or without, and the lock ends with its process."""

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.locks import judgement
from hpcphotoz.locks.judgement import is_held
from hpcphotoz.locks.lock import HeldLock, lock_file
from hpcphotoz.locks.owner import LockOwner

TIMEOUT_S = 60
HOLD = """
import fcntl, sys
from pathlib import Path
from hpcphotoz.locks.lock import lock_file
def no_locks(*_):
    raise OSError(38, "Function not implemented")
if "without" in sys.argv:
    fcntl.flock = no_locks
with lock_file(Path(sys.argv[1]), "busy", "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""
NO_FLOCK = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


def refusing(number: int) -> Callable[[int, int], None]:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture(params=["with flock", "without flock", "without links"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with and without `flock` and hard links."""
    name = str(request.param)
    if name != "with flock":
        monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOSYS))
    if name == "without links":

        def no_links(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", no_links)
    return name


def test_a_second_holder_is_refused_and_the_file_goes_with_the_first(system: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path, "busy", "wait"):
        with (
            pytest.raises(BadInput, match=rf"^busy \(.+ on .+, process {os.getpid()}, since .+\): wait$"),
            lock_file(path, "busy", "wait"),
        ):
            pass
        assert [each.name for each in tmp_path.iterdir()] == ["lock"] and is_held(path)
    assert not list(tmp_path.iterdir()) and not is_held(path)
    with lock_file(path, "busy", "wait"):
        pass


def test_a_lock_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    with ExitStack() as first:
        first.enter_context(lock_file(path, "busy", "wait"))
        monkeypatch.setattr("time.sleep", lambda _: first.close())
        with lock_file(path, "busy", "wait", wait_s=TIMEOUT_S):
            assert is_held(path)
    assert capsys.readouterr().err.count(f"waiting up to {TIMEOUT_S:.0f} s for its end") == 1
    assert not path.exists()


def test_the_owner_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    path = tmp_path / "lock"
    with lock_file(path, "busy", "wait"):
        said = json.loads(path.read_text())
        with pytest.raises(BadInput, match=", Slurm job 4711, since 20"), lock_file(path, "busy", "wait"):
            pass
    assert said["path"] == str(path) and said["slurm_job"] == "4711" and said["pid"] == os.getpid()


@pytest.mark.parametrize("how", ["with", "without"])
def test_a_killed_process_leaves_the_file_and_not_the_lock(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "without":
        monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    path = tmp_path / "lock"
    holder = [sys.executable, "-c", HOLD, str(path), how]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=f"process {process.pid}"), lock_file(path, "busy", "wait"):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_held(path), "a zombie holds nothing"
    with lock_file(path, "busy", "wait"):
        assert is_held(path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"process {process.pid}, since " in said and said.endswith(": that process has ended\n")


def _count(path: Path, turns: int, flock: bool) -> int:
    """Add one to the number in a file `turns` times, protected by the lock alone."""
    if not flock:
        fcntl.flock = refusing(errno.ENOLCK)  # type: ignore[assignment]
    done = 0
    while done < turns:
        try:
            with lock_file(path.with_name("lock"), "busy", "wait"):
                path.write_text(str(int(path.read_text()) + 1))
                done += 1
        except BadInput:
            continue
    return done


@pytest.mark.parametrize("flock", [True, False])
def test_no_two_processes_hold_it_while_others_come_and_go(tmp_path: Path, flock: bool) -> None:
    """Each holder removes the file at its end; the next must not lock the removed file."""
    path = tmp_path / "count"
    path.write_text("0")
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        turns = [pool.submit(_count, path, 150, flock) for _ in range(3)]
        assert sum(turn.result(TIMEOUT_S) for turn in turns) == 450
    assert path.read_text() == "450" and [each.name for each in tmp_path.iterdir()] == ["count"]


@pytest.mark.parametrize("number", NO_FLOCK)
def test_a_file_system_without_locks_is_locked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    path = tmp_path / "lock"
    with lock_file(path, "busy", "wait"):
        assert is_held(path)
        with pytest.raises(BadInput, match="busy"), lock_file(path, "busy", "wait"):
            pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_lock_that_fails_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with (
        pytest.raises(BadInput, match=r"lock: cannot be locked: "),
        lock_file(tmp_path / "lock", "busy", "wait"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_or_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "link", tmp_path / "none" / "lock"):
        with (
            pytest.raises(BadInput, match="the folder cannot be written: "),
            lock_file(path, "busy", "wait"),
        ):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_files_of_killed_processes_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    owner = LockOwner.of_this_process(tmp_path / "lock", 1)
    alive, dead = tmp_path / "lock.a.tmp", tmp_path / "lock.b.tmp"
    alive.write_text(owner.json)
    dead.write_text(owner.json.replace(f'"started": {owner.started}', '"started": 1'))
    with lock_file(tmp_path / "lock", "busy", "wait"):
        assert alive.exists() and not dead.exists()


def test_a_full_disk_leaves_a_lock_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file needs no room: the run that holds it may make some."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "lock"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        patch.setattr(judgement, "REFRESH_S", 0.05)
        with lock_file(path, "busy", "wait"):
            assert path.read_bytes() == b"" and is_held(path)
            with pytest.raises(BadInput, match="^busy: wait$"), lock_file(path, "busy", "wait"):
                pass
            patch.undo()
            patch.setattr(judgement, "REFRESH_S", 0.05)
            while not path.read_bytes():
                pass
    assert not path.exists()


def test_a_holder_notices_that_its_lock_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stood still for minutes must not go on to write."""
    monkeypatch.setattr(judgement, "REFRESH_S", 0.05)
    path = tmp_path / "lock"
    with lock_file(path, "busy", "wait") as held:
        assert isinstance(held, HeldLock) and held.problem is None
        other = LockOwner.of_this_process(path, 1)
        (tmp_path / "other").write_text(other.json)
        os.replace(tmp_path / "other", path)
        while held.problem is None:
            pass
        assert other.text in held.problem and "has taken over the lock" in held.problem
    assert path.read_text() == other.json, "the lock of another process stays"
