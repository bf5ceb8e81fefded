"""What stays in a run folder: nothing is removed that another process may need, or before newer ones load."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hpcphotoz import atomic
from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.saving import checkpoint_file
from hpcphotoz.training.saving.temporary import ABANDONED_S, drop_abandoned, owner


def save(run: Path, step: int, keep: int = 2, verified: set[Path] | None = None) -> None:
    checkpoint.save(run, {"step": step, "model": torch.arange(1000)}, keep, verified)


def steps_of(run: Path) -> list[int]:
    return sorted(map(checkpoint.step_of, (run / "checkpoints").glob("*.pt")))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_do_not_count_among_those_to_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=9)
    flip(checkpoint.path_of(tmp_path, "checkpoints", 4))
    flip(checkpoint.path_of(tmp_path, "checkpoints", 3))
    save(tmp_path, 5)
    assert steps_of(tmp_path) == [2, 3, 4, 5], "2 is the newest before 5 that loads"
    verified = {checkpoint.path_of(tmp_path, "checkpoints", 5)}
    save(tmp_path, 6, verified=verified)
    assert steps_of(tmp_path) == [5, 6]


def test_checkpoints_of_later_steps_stay(tmp_path: Path) -> None:
    """An old job that still runs has saved them, or this one went back behind a damaged one."""
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=9)
    save(tmp_path, 25)
    assert steps_of(tmp_path) == [20, 25, 30, 40]
    save(tmp_path, 28)
    assert steps_of(tmp_path) == [25, 28, 30, 40]


def temporary(folder: Path, who: str) -> Path:
    path = folder / f"step-00000005.pt.{who}.x_1.tmp"
    path.write_bytes(b"half")
    return path


def test_unfinished_files_of_processes_that_may_live_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    host = socket.gethostname()
    left = [
        temporary(tmp_path, owner()),
        temporary(tmp_path, f"{host}-{os.getppid()}"),
        temporary(tmp_path, f"another.host-{ended.pid}"),
    ]
    unknown = tmp_path / "step-00000005.pt.abc.tmp"  # of an earlier version
    unknown.write_bytes(b"half")
    assert not drop_abandoned(tmp_path)
    gone = temporary(tmp_path, f"{host}-{ended.pid}")
    old = time.time() - ABANDONED_S - 60
    os.utime(unknown, (old, old))
    assert drop_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(left) and not gone.exists()


def test_an_unfinished_file_that_another_process_removed_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, removed = atomic.atomic_write, list[str]()

    @contextmanager
    def atomic_write(path: Path, owner: str) -> Iterator[Path]:
        with write(path, owner) as temporary:
            yield temporary
            if not removed:
                removed.append(temporary.name)
                temporary.unlink()

    monkeypatch.setattr(checkpoint_file, "atomic_write", atomic_write)
    save(tmp_path, 1)
    assert len(removed) == 1 and checkpoint.latest(tmp_path) == tmp_path / "checkpoints/step-00000001.pt"
    assert re.fullmatch(rf"step-00000001\.pt\.{re.escape(owner())}\.\w+\.tmp", removed[0])


def test_a_run_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"step-00000001.pt: cannot save the checkpoint: No such file"):
        save(tmp_path / "gone", 1)


def test_the_newest_step_of_all_folders_is_resumed(tmp_path: Path) -> None:
    save(tmp_path, 4)
    for folder, step in (("best", 7), ("kept", 2)):
        state = {"step": step, "model": torch.arange(1000)}
        checkpoint.write(tmp_path, checkpoint.path_of(tmp_path, folder, step), state, 2, set())
    assert [checkpoint.step_of(path) for path in checkpoint.paths(tmp_path)] == [7, 4, 2]
    found = checkpoint.resumed(tmp_path)
    assert found is not None and found[1]["step"] == 7
    flip(found[0])
    flip(checkpoint.path_of(tmp_path, "checkpoints", 4))
    found = checkpoint.resumed(tmp_path)
    assert found is not None and found[0] == tmp_path / "kept/step-00000002.pt"


def test_a_run_of_which_nothing_loads_does_not_begin_anew(tmp_path: Path) -> None:
    assert checkpoint.resumed(tmp_path) is None
    save(tmp_path, 4)
    flip(checkpoint.path_of(tmp_path, "checkpoints", 4))
    with pytest.raises(BadInput, match="none of its 1 checkpoints loads, the newest is step-00000004.pt"):
        checkpoint.resumed(tmp_path)
