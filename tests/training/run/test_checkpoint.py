"""Checkpoints on a full disk: one line, the newest good one is kept, and older ones make room."""

import errno
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hpcphotoz import atomic
from hpcphotoz.__main__ import main
from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint, run_folder
from hpcphotoz.training.saving import checkpoint_file
from tests.helpers import ranks

LIMIT = 64 * 1024  # bytes per file: less than a checkpoint of the smallest network, more than any other file


def save_all(run: Path, steps: range) -> None:
    for step in steps:
        checkpoint.save(run, {"step": step, "model": torch.arange(step)}, keep=9)


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def fill_disk(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """Leave room on the disk for this many checkpoints."""
    write = atomic.atomic_write

    @contextmanager
    def atomic_write(path: Path, owner: str) -> Iterator[Path]:
        with write(path, owner) as temporary:
            yield temporary
            if len(list(path.parent.iterdir())) > files:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_file, "atomic_write", atomic_write)


def ended_process() -> int:
    """Number of a process of this host that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    return process.pid


def tear(run: Path, step: int) -> None:
    path = run / "checkpoints" / f"step-{step:08d}.pt"
    os.truncate(path, path.stat().st_size // 2)


def test_a_disk_with_room_keeps_all_checkpoints(tmp_path: Path) -> None:
    save_all(tmp_path, range(1, 5))
    checkpoint.save(tmp_path, {"step": 5}, keep=3)
    assert steps_of(tmp_path) == [3, 4, 5]


def test_a_smaller_keep_makes_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_all(tmp_path, range(1, 5))
    unfinished = f"step-00000005.pt.{socket.gethostname()}-{ended_process()}.abc.tmp"
    (tmp_path / "checkpoints" / unfinished).write_bytes(b"of a killed process")
    fill_disk(monkeypatch, files=4)
    checkpoint.save(tmp_path, {"step": 5}, keep=2)
    assert steps_of(tmp_path) == [4, 5]


def test_the_newest_that_loads_is_not_dropped_to_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path, range(1, 5))
    tear(tmp_path, 4)
    tear(tmp_path, 3)
    fill_disk(monkeypatch, files=1)
    with pytest.raises(BadInput, match=r"step-00000005.pt: cannot save .* No space left on device \(\d"):
        checkpoint.save(tmp_path, {"step": 5}, keep=2)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and checkpoint.load(newest)["step"] == 2
    assert steps_of(tmp_path) == [2, 3, 4], "1 made no room"


def test_without_a_checkpoint_that_loads_nothing_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path, range(1, 4))
    for step in (1, 2, 3):
        tear(tmp_path, step)
    fill_disk(monkeypatch, files=1)
    with pytest.raises(BadInput, match="cannot save"):
        checkpoint.save(tmp_path, {"step": 5}, keep=2)
    assert steps_of(tmp_path) == [1, 2, 3]


@contextmanager
def small_files() -> Iterator[None]:
    """Processes started in this block cannot write files of more than `LIMIT` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WORDS = "--model.width 8 --model.bins 20 --run.global_batch 16 --run.log_steps 1".split()
WORDS += "--data.validation 0 --run.checkpoint_steps 2".split()


def words(dataset: Path, out: Path, max_steps: int) -> list[str]:
    start = ["train", "standard", "--data", str(dataset), "--out", str(out)]
    return [*start, *WORDS, "--run.max_steps", str(max_steps)]


@pytest.mark.slow
def test_two_ranks_end_with_one_line_and_the_same_command_resumes(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(words(dataset, out, 2)) == 0
    with small_files():
        limited = ranks.start(2, words(dataset, out, 9))
    results = ranks.finish(limited)
    assert [status for status, _, _ in results] == [2, 2], results
    errors = "".join(error for _, _, error in results)
    assert errors.count("cannot save the checkpoint: File too large (") == 1 and "Traceback" not in errors
    newest = checkpoint.latest(out)
    assert newest is not None and checkpoint.load(newest)["step"] == 2
    assert main(words(dataset, out, 9)) == 0
    assert [step for step, _ in ranks.curve(out)] == list(range(1, 10))


def test_a_last_checkpoint_that_cannot_be_saved_is_an_error(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_disk(monkeypatch, files=0)
    assert main(words(dataset, tmp_path / "run", 1)) == 2
    said = capsys.readouterr()
    assert "cannot save the checkpoint: No space left on device (" in said.err and "finished" not in said.out


def test_metrics_that_cannot_be_written_are_an_error(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hpcphotoz.training.run.recorder.RunRecorder._append", full)
    assert main(words(dataset, tmp_path / "run", 4)) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"run/metrics.jsonl: No space left on device \(\S+ MB of the disk are free\): make room", said
    )


def test_a_run_resumes_on_a_full_disk_with_a_smaller_keep(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file that a resumed run writes is its configuration."""
    out = tmp_path / "run"
    keep = "--run.keep_checkpoints"
    assert main([*words(dataset, out, 8), keep, "4"]) == 0
    write = atomic.write_text

    def write_text(path: Path, text: str) -> None:
        if len(list((out / "checkpoints").iterdir())) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text)

    monkeypatch.setattr(run_folder, "write_text", write_text)
    assert main([*words(dataset, out, 9), keep, "4"]) == 0, "three, and one more while the next is written"
    assert main([*words(dataset, out, 10), keep, "2"]) == 0
    assert steps_of(out) == [9, 10]


def test_an_output_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """A rename would put a plain file in the place of a device."""
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(BadInput, match="is a folder or a device"), atomic.atomic_write(path):
            pass
    assert Path("/dev/null").is_char_device()


def test_a_failed_write_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="pz.hdf5") as failed, atomic.atomic_write(tmp_path / "pz.hdf5"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert failed.value.filename == str(tmp_path / "pz.hdf5") and not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"step": 1}, 2)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(BadInput, match="disk full"):
        checkpoint.save(tmp_path, {"step": 2}, 2)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and checkpoint.load(newest)["step"] == 1
