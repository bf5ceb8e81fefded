"""Command lines in tests: small training options, and the one line of a refusal."""

import shutil
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main

TINY = [
    "--model.width",
    "8",
    "--model.bins",
    "20",
    "--run.max_steps",
    "2",
    "--run.global_batch",
    "16",
]


def copy(dataset: Path, to: Path) -> Path:
    """A copy of a dataset, to be damaged."""
    return Path(shutil.copytree(dataset, to))


def fails(capsys: pytest.CaptureFixture[str], words: list[object], says: str) -> None:
    """Exit status 2, and the last line of standard error is the one that says why."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("hpcphotoz: error: ") and says in errors[0], lines
    assert not any("Traceback" in line for line in lines)
