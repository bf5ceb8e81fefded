"""A user's temporary folder on a node: whose it is, and on which disk."""

import os
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.node import folders
from hpcphotoz.node.folders import network_file_system, own_folder, temporary_base


def test_the_folder_is_of_this_user_alone(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    assert folder.name == f"hpcphotoz-{os.geteuid()}" and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert own_folder(tmp_path) == folder and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_what_another_user_may_have_prepared_is_refused(tmp_path: Path, kind: str) -> None:
    there, elsewhere = tmp_path / f"hpcphotoz-{os.geteuid()}", tmp_path / "elsewhere"
    if kind == "file":
        there.touch()
    else:
        there.symlink_to(elsewhere)
    if kind == "link":
        elsewhere.mkdir()
    with pytest.raises(BadInput, match="is no folder of its own"):
        own_folder(tmp_path)
    assert kind == "file" or list(elsewhere.glob("*")) == []


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    try:
        os.chown(folder, 12345, -1)
    except PermissionError:
        pytest.skip("only root gives files away")
    with pytest.raises(BadInput, match="belongs to another user.*--stage FOLDER"):
        own_folder(tmp_path)


def test_the_first_local_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, user = tmp_path / "job", tmp_path / "a user"
    job.mkdir()
    user.mkdir()
    env = {"SLURM_TMPDIR": str(job), "TMPDIR": str(user)}
    assert temporary_base(env) == job
    assert temporary_base({**env, "SLURM_TMPDIR": str(tmp_path / "absent")}) == user
    assert temporary_base({**env, "SLURM_TMPDIR": "relative"}) == user
    assert temporary_base({}) == Path("/tmp")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nserver@tcp:/scratch {job} lustre rw 0 0\n")
    monkeypatch.setattr(folders, "_MOUNTS", mounts)
    assert network_file_system(job / "below") == "lustre" and network_file_system(user) == ""
    assert temporary_base(env) == user
    with mounts.open("a") as file:
        file.write(f"server:/export {str(user).replace(' ', chr(92) + '040')} nfs4 rw 0 0\n")
    assert temporary_base(env) == Path("/tmp")
    with mounts.open("a") as file:
        file.write(f"tmpfs {job} tmpfs rw 0 0\n")  # mounted over it
    assert temporary_base(env) == job
