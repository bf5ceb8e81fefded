"""Copies of files on this node's disk: whole and checked or not there, and removed whatever happens."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.node import staging
from hpcphotoz.node.staging import FileToCopy, copy_files, staging_folder
from tests.helpers.paths import ROOT


def file_to_copy(folder: Path, name: str, size: int = 1000, **other: object) -> FileToCopy:
    """A file of a dataset, and what its manifest says of it."""
    content = os.urandom(size)
    (folder / name).write_bytes(content)
    told = {"bytes": size, "sha256": hashlib.sha256(content).hexdigest(), **other}
    return FileToCopy(folder / name, name, **told)  # type: ignore[arg-type]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A node's folder for temporary files."""
    folder = tmp_path / "base"
    folder.mkdir()
    return folder


def left(base: Path) -> list[str]:
    """What is left in the user's folder."""
    return sorted(path.name for path in base.glob("*/*"))


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2500])
def test_copies_are_the_same_bytes(
    base: Path, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller than a piece, as large, and of several."""
    monkeypatch.setattr(staging, "_PIECE", 1000)
    files = [file_to_copy(tmp_path, name, size) for name in ("a", "b")]
    with staging_folder(base, 2 * size) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert sum(copy_files(files, folder, keep_damaged=False)) == 2 * size
        assert all((folder / file.target).read_bytes() == file.source.read_bytes() for file in files)
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert left(base) == []


def test_an_error_leaves_nothing(base: Path) -> None:
    with pytest.raises(KeyError), staging_folder(base, 0) as folder:
        (folder / "file").touch()
        raise KeyError
    assert left(base) == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("changed", "content is not that of the manifest's checksum"),
        ("short", "no plain file of 1000 bytes"),
        ("absent", "cannot be read: No such file"),
        ("link", "cannot be read"),
        ("pipe", "no plain file"),
    ],
)
def test_a_file_that_is_not_the_manifests_is_refused_or_left_out(
    base: Path, tmp_path: Path, kind: str, reason: str
) -> None:
    bad, good = file_to_copy(tmp_path, "bad"), file_to_copy(tmp_path, "good")
    if kind == "changed":
        bad.source.write_bytes(bytes(1000))
    elif kind == "short":
        os.truncate(bad.source, 999)
    else:
        bad.source.unlink()
    if kind == "link":
        bad.source.symlink_to(good.source)
    elif kind == "pipe":
        os.mkfifo(bad.source)
    with staging_folder(base, 0) as folder:
        with pytest.raises(BadInput, match=rf"/bad: .*{reason}"):
            list(copy_files([bad, good], folder, keep_damaged=False))
        assert not (folder / "bad").exists()
    with staging_folder(base, 0) as folder:
        list(copy_files([bad, good], folder, keep_damaged=True))
        # A changed one is kept: its rows have checksums of their own, and most of them may be good.
        assert (folder / "bad").exists() == (kind == "changed") and (folder / "good").exists()


def test_too_little_room_is_said_before_anything_is_copied(base: Path) -> None:
    with pytest.raises(BadInput, match=r"needs 1e\+09 GB, .*base on .* has .* GB free: name another folder"):
        with staging_folder(base, 10**18):
            pytest.fail("it began")
    assert left(base) == []


def test_a_disk_that_becomes_full(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = file_to_copy(tmp_path, "a")
    with staging_folder(base, 1000) as folder:
        monkeypatch.setattr(staging, "os", SimpleNamespace(**{**vars(os), "write": write}))
        with pytest.raises(BadInput, match="the disk became full: name another folder"):
            list(copy_files([file], folder, keep_damaged=False))
        monkeypatch.undo()


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--stage .*absent: no such folder on "):
        with staging_folder(tmp_path / "absent", 0):
            pytest.fail("it began")


KILLED = """
import os, signal, sys
from pathlib import Path
from hpcphotoz.node.staging import staging_folder
with staging_folder(Path(sys.argv[1]), 0) as folder:
    (folder / "0").mkdir()
    (folder / "0" / "shard").touch()
    print(folder.name, flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def another(base: Path, how: str) -> subprocess.Popen[str]:
    """Another process of this user that has a folder on this node."""
    words, pipe = [sys.executable, "-c", KILLED, str(base), how], subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, env=env, text=True)


def test_the_folder_of_a_killed_process_goes_and_that_of_a_live_one_stays(base: Path) -> None:
    alive = another(base, "alive")
    try:
        assert alive.stdout
        name = alive.stdout.readline().strip()
        dead, _ = another(base, "killed").communicate(timeout=60)
        assert {name, dead.strip()} <= set(left(base))
        with staging_folder(base, 0) as folder:
            assert left(base) == sorted([name, f"{name}.lock", folder.name, f"{folder.name}.lock"])
        assert left(base) == [name, f"{name}.lock"] and (base.glob(f"*/{name}/0/shard"))
        alive.communicate("", timeout=60)
        assert left(base) == []
    finally:
        alive.kill()
        alive.wait(timeout=10)
