"""Fixtures that several test modules share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hpcphotoz.compute.compiler import keep_compiled_code
from hpcphotoz.data.format import index
from tests.helpers.datasets import make_dataset


def pytest_configure() -> None:
    """Hear signals again that a shell in the background or nohup has told its children to ignore."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    keep_compiled_code()  # also of tests that compile by themselves: apart for each kind of CPU


# Folders with long tests: they start ranks, clusters, compilers and interpreters.
LONG = ("launch", "overlap", "training", "distributed", "run", "kernels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders of long tests: a worker that meets one at the end keeps the others waiting."""
    items.sort(key=lambda item: LONG.index(name) if (name := item.path.parent.name) in LONG else len(LONG))


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexing opens shards in another process first: a second each time."""
    monkeypatch.setattr(index, "_probe", lambda paths: None)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 objects of 16 pixels in three unequal shards."""
    return make_dataset(tmp_path_factory.mktemp("data") / "set", n=75, shard_rows=32)


@pytest.fixture
def poison() -> Iterator[None]:
    """torch.empty is NaN, or the greatest integer: what a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
