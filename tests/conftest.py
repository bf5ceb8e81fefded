"""Fixtures that several test modules share."""

from pathlib import Path

import pytest

from tests.datasets import make_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 objects of 16 pixels in three unequal shards."""
    return make_dataset(tmp_path_factory.mktemp("data") / "set", n=75, shard_rows=32)
