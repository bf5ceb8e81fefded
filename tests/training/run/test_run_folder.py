"""A run folder that cannot be written is refused at once; what a killed start left in it is removed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import run_folder
from hpcphotoz.training.saving.temporary import ABANDONED_S
from hpcphotoz.world import World
from tests.helpers.disks import SmallDisk
from tests.helpers.training.runs import config


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path / "disk")
    yield small
    small.close()


def refused(dataset: Path, out: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> str:
    """The line that refuses a run folder; nothing was read or built before."""
    patch.setattr("hpcphotoz.training.trainer.RunPreparation", lambda *_: pytest.fail("reads the data"))
    assert main(["train", "standard", "--data", str(dataset), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hpcphotoz: error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("made", [True, False], ids=["a run", "no folder"])
def test_a_read_only_disk(
    made: bool,
    disk: SmallDisk,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = disk.mount("size=1m") / "run"
    if made:
        (out / "logs").mkdir(parents=True)
    disk.make_read_only()
    said = refused(dataset, out, capsys, monkeypatch)
    assert f"the file system of {out if made else disk.folder} is mounted read-only" in said


def test_a_parent_that_is_a_file(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "run", tmp_path / "file"):
        assert f"{tmp_path / 'file'} is a file" in refused(dataset, out, capsys, monkeypatch)


CHECK = """
import sys
from pathlib import Path
from hpcphotoz.config import Config
from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import run_folder
for name in sys.argv[1:]:
    try:
        run_folder.check(Path(name), Config())
        print("passes")
    except BadInput as error:
        print(error)
"""


def test_folders_without_permission(tmp_path: Path) -> None:
    """The run's own folder, a parent in which it would be made, a folder or log in it of another user."""
    words = [sys.executable, "-c", CHECK]
    if os.geteuid() == 0:  # root may write anywhere
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv to try permissions as root")
        words = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *words]
    names = [tmp_path / name for name in ("run", "parent/run", "owner/run", "log/run", "free/run")]
    for out in names[2:]:
        (out / "checkpoints").mkdir(parents=True)
        (out / "logs").mkdir()
    (names[3] / "logs" / "rank-0.log").touch(0o444)
    closed = [names[0], names[1].parent, names[2] / "checkpoints"]
    for folder in closed:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o555)
    done = subprocess.run([*words, *map(str, names)], capture_output=True, text=True, timeout=100)
    said = done.stdout.splitlines()
    assert said == [
        f"{names[0]}: no permission to write in {names[0]}",
        f"{names[1]}: cannot make the folder: no permission to write in {names[1].parent}",
        f"{closed[2]}: no permission to write in {closed[2]}",
        f"{names[3]}/logs/rank-0.log: no permission to write: remove it, or choose another --out",
        "passes",
    ], done.stderr


def test_a_parent_that_is_not_there_is_made(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "today" / "run"
    run_folder.check(run, config())
    with run_folder.prepare(run, World()):
        assert (run / "logs" / "lock").is_file()
    (run / "config.toml").touch()
    with (
        pytest.raises(BadInput, match="cannot make the run folder"),
        run_folder.prepare(run / "config.toml" / "run", World()),
    ):
        pass


def test_what_killed_processes_left_is_removed_as_a_run_begins(tmp_path: Path) -> None:
    """Names that do not tell their writer are removed after a day."""
    left = [tmp_path / name for name in ("config.toml.abc.tmp", "selection/train.bits.abc.tmp")]
    young = tmp_path / "metrics.jsonl.abc.tmp"
    for path in (*left, young):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for path in left:
        time = path.stat().st_mtime - ABANDONED_S - 60
        os.utime(path, (time, time))
    with run_folder.prepare(tmp_path, World()):
        assert not any(path.exists() for path in left) and young.exists()
