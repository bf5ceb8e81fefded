"""Fixtures that several test modules share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcphotoz.compute.compiler import keep_compiled_code
from hpcphotoz.data.format import index
from tests.helpers.datasets import make_dataset
from tests.helpers.kernels.memory_checks import poisoned


def pytest_configure() -> None:
    """Restore signals that a background shell or nohup has set to be ignored."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    keep_compiled_code()  # in a cache folder per kind of CPU, also for tests that call torch.compile


# Folders with long tests: they start ranks, clusters, compilers and interpreters.
LONG = ("launch", "overlap", "training", "distributed", "run", "exact", "kernels", "attack", "network")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the folders of long tests: one that starts last would keep all other workers waiting."""
    items.sort(key=lambda item: LONG.index(name) if (name := item.path.parent.name) in LONG else len(LONG))


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexing opens shards in another process first, which takes a second; tests skip that."""
    monkeypatch.setattr(index, "_probe", lambda paths: None)


@pytest.fixture(autouse=True, scope="session")
def own_list_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The runs of tests do not enter the list of the developer's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 objects of 16 pixels in three unequal shards."""
    return make_dataset(tmp_path_factory.mktemp("data") / "set", n=75, shard_rows=32)


@pytest.fixture
def poison() -> Iterator[None]:
    """Elements that a kernel does not write are NaN, the largest integer or True."""
    with poisoned():
        yield
