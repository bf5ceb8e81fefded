"""A full or failing disk leaves the last good checkpoint, one line, and a run that resumes."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcphotoz import provenance
from hpcphotoz.__main__ import main
from hpcphotoz.config import Config
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.recorder import RunRecorder
from hpcphotoz.training.saving.failed_write import message
from tests.helpers import ranks
from tests.helpers.disks import SmallDisk

WORDS = "--model.width 8 --model.bins 20 --run.global_batch 16 --run.log_steps 1".split()
WORDS += (
    "--data.validation 0 --run.checkpoint_steps 1 --run.keep_checkpoints 40 --compute.precision fp32".split()
)


def words(dataset: Path, out: Path, max_steps: int) -> list[str]:
    start = ["train", "standard", "--data", str(dataset), "--out", str(out), "--run.max_steps"]
    return [*start, str(max_steps), *WORDS]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk with the options of a tmpfs."""
    small = SmallDisk(tmp_path / "disk")
    yield small.mount
    small.close()


def fill(folder: Path, leave: int) -> Path:
    """Fill a disk but for some bytes."""
    path = folder / "ballast"
    free = os.statvfs(folder)
    path.write_bytes(bytes(max(free.f_bavail * free.f_frsize - leave, 0)))
    return path


def loads(run: Path) -> int:
    """Step of the newest checkpoint; nothing half-written is there beside the whole ones."""
    assert not list(run.rglob("*.tmp"))
    for path in checkpoint.paths(run):
        checkpoint.load(path)
    newest = checkpoint.latest(run)
    assert newest is not None
    return checkpoint.step_of(newest)


def trained(dataset: Path, out: Path) -> int:
    """Bytes of the checkpoint of a run of one step."""
    assert main(words(dataset, out, 1)) == 0
    (path,) = checkpoint.paths(out)
    return path.stat().st_size


def fails_and_resumes(
    out: Path, dataset: Path, capfd: pytest.CaptureFixture[str], make_room: Callable[[], object]
) -> str:
    """The one line of a start that fails; the same command resumes after room was made."""
    capfd.readouterr()
    assert main(words(dataset, out, 30)) == 2
    said = capfd.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("hpcphotoz: error: ")]
    assert len(errors) == 1 and "Traceback" not in said and "Logging error" not in said, said
    done = loads(out)
    make_room()
    assert main(words(dataset, out, done + 2)) == 0 and loads(out) == done + 2
    assert [step for step, _ in ranks.curve(out)] == list(range(1, done + 3))
    assert not (out / "logs" / "lock").exists() and not list(out.rglob("*.tmp"))
    assert provenance.read_starts(out)[0]["end"]["outcome"] == "finished"
    return errors[0]


@pytest.mark.parametrize("checkpoints", [0.5, 1.2, 2.6])
def test_a_full_disk(
    checkpoints: float, disk: Callable[[str], Path], dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Room for so many checkpoints: the disk is full within one, within its weights, or later."""
    room = disk("size=8m")
    size = trained(dataset, room / "run")
    ballast = fill(room, int(checkpoints * size))
    said = fails_and_resumes(room / "run", dataset, capfd, ballast.unlink)
    assert re.search(r": No space left on device \(.*\S+ MB of the disk are free\): make room", said), said


@pytest.mark.parametrize(
    ("pages", "file"), [(0, "config.toml"), (2, "provenance.json"), (3, "step-00000002.pt")]
)
def test_a_disk_with_room_for_small_files(
    pages: int, file: str, disk: Callable[[str], Path], dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lock, the configuration, the record of the start, metrics and logs: each may be one too many."""
    room = disk("size=8m")
    trained(dataset, room / "run")
    ballast = fill(room, 4096 * pages)
    assert file in fails_and_resumes(room / "run", dataset, capfd, ballast.unlink)


@pytest.mark.parametrize(
    ("left", "says"), [(0, "logs: the folder cannot"), (2, "inodes left for other files")]
)
def test_a_disk_without_inodes(
    left: int, says: str, disk: Callable[[str], Path], dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    room = disk("size=30m,nr_inodes=60")
    trained(dataset, room / "run")
    (room / "ballast").mkdir()
    while (free := os.statvfs(room).f_favail) > left:
        (room / "ballast" / str(free)).touch()

    def make_room() -> None:
        for path in (room / "ballast").iterdir():
            path.unlink()

    assert says in fails_and_resumes(room / "run", dataset, capfd, make_room)


def failing(number: int, when: Callable[[Path], bool]) -> Callable[..., None]:
    """A call of the system on a file or its descriptor that fails for some files."""

    def call(what: int | Path, *target: Path) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{what}")) if isinstance(what, int) else what
        if when(path):
            raise OSError(number, os.strerror(number))
        for other in target:
            os.rename(path, other)

    return call


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        ("fsync", errno.EDQUOT, r"MB are needed, the quota of the user, group or project is used up\): make"),
        ("replace", errno.ENOSPC, r"MB are needed, \S+ MB of the disk are free\): make room"),
        ("fsync", errno.EIO, r"Input/output error \(\S+ MB are needed\): the storage fails, not the run"),
        ("replace", errno.ESTALE, r"Stale file handle \(\S+ MB are needed\): the storage fails, not the"),
    ],
    ids=["quota", "full", "I/O error", "stale"],
)
def test_errors_that_come_late(
    call: str,
    number: int,
    says: str,
    dataset: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Network file systems tell of a full disk or quota when a file is flushed."""
    out = tmp_path / "run"
    trained(dataset, out)
    monkeypatch.setattr(os, call, failing(number, lambda path: path.name.startswith("step-00000004.pt")))
    said = fails_and_resumes(out, dataset, capfd, monkeypatch.undo)
    assert re.search(says, said), said


def test_a_line_of_metrics_is_whole_or_not_there(
    disk: Callable[[str], Path], dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a line would join the next one that finds room."""
    room = disk("size=1m")
    recorder = RunRecorder(room, 0, Config(), writes=True)
    ballast = fill(room, 4096)
    while recorder.problem is None:
        recorder.write(1, 0, loss=0.5)
    whole = (room / "metrics.jsonl").read_text()
    assert whole.endswith("\n") and 4000 < len(whole) <= 4096 and "make room" in recorder.problem
    assert {json.loads(line)["loss"] for line in whole.splitlines()} == {0.5}
    ballast.unlink()
    recorder.write(2, 0, loss=0.5)
    assert (room / "metrics.jsonl").read_text() == whole, "nothing follows a line that is missing"


def test_the_advice_suits_the_error(tmp_path: Path) -> None:
    def told(number: int) -> str:
        error = OSError(number, os.strerror(number))
        return message(tmp_path / "config.toml", error, "the newest checkpoint")

    assert "make room" in told(errno.ENOSPC) and "make room" in told(errno.EDQUOT)
    assert "ulimit" in told(errno.EFBIG) and "the storage fails" in told(errno.EROFS)
    assert all("\n" not in told(number) for number in (errno.EIO, errno.EACCES))
