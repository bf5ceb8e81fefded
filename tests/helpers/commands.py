"""Command lines in tests: small training options, and a check of refusals."""

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
    """Copy a dataset, so that it can be damaged."""
    return Path(shutil.copytree(dataset, to))


def fails(capsys: pytest.CaptureFixture[str], words: list[object], says: str) -> None:
    """Asserts exit status 2 and exactly one error line, which contains `says`."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("hpcphotoz: error: ") and says in errors[0], lines
    assert not any("Traceback" in line for line in lines)
