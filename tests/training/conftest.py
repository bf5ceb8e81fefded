"""Fixtures of the tests of training."""

from pathlib import Path

import pytest

from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.trainer import train
from tests.helpers.training.runs import config


@pytest.fixture(scope="session")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank, with which others are compared."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert train(config(), dataset, out) is Outcome.FINISHED
    return out
