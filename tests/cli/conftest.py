"""A trained run for the tests of commands."""

from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from tests.helpers.commands import TINY


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "standard"
    assert main(["train", "standard", "--data", str(dataset), "--out", str(out), *TINY]) == 0
    return out
