"""The batch script of every shipped profile and every kind of Python, as recorded, and as bash reads it."""

import subprocess
from pathlib import Path

import pytest

from hpcphotoz.launch.request.profile import profile_files
from tests.helpers.launch.golden import FOLDER, NAMES, PROFILES, script

pytest.importorskip("submitit", reason="submitit is not installed")


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_the_script_is_the_recorded_one(name: str) -> None:
    recorded = (FOLDER / f"{name}.sh").read_text()
    assert script(name) == recorded, "if that is meant: python -m tests.helpers.launch.golden --write"


@pytest.mark.parametrize("name", NAMES)
def test_bash_can_read_the_script(name: str) -> None:
    subprocess.run(["bash", "-n"], input=script(name), text=True, check=True, timeout=30)


def test_every_shipped_profile_is_recorded_and_nothing_else() -> None:
    assert sorted(profile_files()) == sorted(PROFILES)
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)
