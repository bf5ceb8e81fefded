"""The lock file has one holder at a time, and the lock ends with its process."""

import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.locks import lock_file

TIMEOUT_S = 60
HOLD = """
import sys
from pathlib import Path
from hpcphotoz.locks import lock_file
with lock_file(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_refused_and_the_file_goes_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path, "busy"):
        with pytest.raises(BadInput, match="^busy$"), lock_file(path, "busy"):
            pass
        assert path.exists()
    assert not path.exists()
    with lock_file(path, "busy"):
        pass


def test_a_killed_process_leaves_the_file_and_not_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match="busy"), lock_file(path, "busy"):
            pass
        process.kill()
    assert path.exists()
    with lock_file(path, "busy"):
        pass


def _count(path: Path, turns: int) -> int:
    """Add one to the number in a file `turns` times, protected by the lock alone."""
    done = 0
    while done < turns:
        try:
            with lock_file(path.with_name("lock"), "busy"):
                path.write_text(str(int(path.read_text()) + 1))
                done += 1
        except BadInput:
            continue
    return done


def test_no_two_processes_hold_it_while_others_come_and_go(tmp_path: Path) -> None:
    """Each holder removes the file at its end; the next must not lock the removed file."""
    path = tmp_path / "count"
    path.write_text("0")
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        turns = [pool.submit(_count, path, 200) for _ in range(3)]
        assert sum(turn.result(TIMEOUT_S) for turn in turns) == 600
    assert path.read_text() == "600"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with lock_file(tmp_path / "lock", "busy"):
        said = capsys.readouterr().err
    assert said.startswith(f"hpcphotoz: warning: {tmp_path}: no locks on this file system ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_lock_that_fails_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with pytest.raises(BadInput, match=r"lock: cannot be locked: "), lock_file(tmp_path / "lock", "busy"):
        pass


def refusing(number: int) -> Callable[[int, int], None]:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def test_a_link_or_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "link", tmp_path / "none" / "lock"):
        with pytest.raises(BadInput, match="the folder cannot be written: "), lock_file(path, "busy"):
            pass
    assert not (tmp_path / "elsewhere").exists()
