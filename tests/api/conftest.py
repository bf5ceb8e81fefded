"""The run that the tests of the public functions share."""

from pathlib import Path

import pytest

import hpcphotoz
from tests.helpers.training.runs import SMALL


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "run"
    assert hpcphotoz.train("adversarial", dataset, out, device="cpu", test=0.3, **SMALL) == out
    return out
