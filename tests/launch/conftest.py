"""Fixtures that the tests of launches share."""

from pathlib import Path

import pytest

from hpcphotoz.launch.job import TrainJob
from tests.helpers.launch.runs import Install, small


@pytest.fixture
def job(dataset: Path, tmp_path: Path) -> TrainJob:
    return TrainJob.of(small(3), dataset, tmp_path / "a run")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a shell script of a given name first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return write
