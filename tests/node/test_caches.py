"""Where ranks of a cluster keep compiled code."""

import os
import socket
from pathlib import Path

import pytest

from hpcphotoz.node import caches
from hpcphotoz.node.caches import use_local_caches
from hpcphotoz.world import World

RANK = World(1, 4, 1, 2, "slurm")


def test_ranks_cache_compiled_code_on_their_node(tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path), "TRITON_CACHE_DIR": "/theirs"}
    folder = tmp_path / f"hpcphotoz-{os.geteuid()}" / f"cache-{socket.gethostname()}"
    for _ in range(2):  # the second rank of the node finds it made
        assert use_local_caches(RANK, env) == folder
    assert env["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor") and (folder / "inductor").is_dir()
    assert env["TRITON_CACHE_DIR"] == "/theirs" and not (folder / "triton").exists()
    assert "MIOPEN_USER_DB_PATH" not in env


def test_one_process_of_a_job_too_and_none_on_a_laptop(tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path)}
    assert use_local_caches(World(), env) is None and env.keys() == {"TMPDIR"}
    assert use_local_caches(World(), env | {"SLURM_JOB_ID": "7"})


def test_the_caches_of_rocm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_ROCM_DEVICE", tmp_path)
    env = {"TMPDIR": str(tmp_path)}
    folder = use_local_caches(RANK, env)
    assert folder and env["MIOPEN_USER_DB_PATH"] == str(folder / "miopen-db")
    assert Path(env["MIOPEN_CUSTOM_CACHE_DIR"]).is_dir()


def test_a_folder_that_another_prepared_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"hpcphotoz-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    env = {"TMPDIR": str(tmp_path)}
    assert use_local_caches(RANK, env) is None and env.keys() == {"TMPDIR"}
    assert "no local cache of compiled code" in caplog.text and not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on a full disk: the run goes on with the defaults."""
    env = {"TMPDIR": str(tmp_path)}
    folder = use_local_caches(RANK, env)
    assert folder
    (folder / "inductor").rmdir()
    (folder / "inductor").touch()
    env = {"TMPDIR": str(tmp_path)}
    assert use_local_caches(RANK, env) is None and env.keys() == {"TMPDIR"}
    assert "no local cache of compiled code" in caplog.text
