"""A stream of several datasets, saved and restored: the batches of a stream that was never interrupted."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hpcphotoz.config import Data
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.mixture import MixedStream
from hpcphotoz.errors import BadInput
from hpcphotoz.world import World
from tests.helpers.datasets import make_stamps, write_stamps

OPTIONS = Data(block_rows=4, window_blocks=3, validation=0)
BATCH, PER_EPOCH, EPOCHS = 16, 5, 3  # 37 objects, 11 a batch: 4 steps; 23 objects, 5 a batch: 5 steps
Seen = set[tuple[int, int, int, int, bytes]]  # step, position, id, random key, pixels


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    folder = tmp_path_factory.mktemp("two")
    folders = [write_stamps(folder / "ab"[k], make_stamps(n, seed=k)) for k, n in enumerate((37, 23))]
    return Datasets(tuple(folders), (0.7, 0.3))


def mixed(datasets: Datasets, rank: int = 0, size: int = 1, seed: int = 1) -> MixedStream:
    return MixedStream(datasets, OPTIONS, global_batch=BATCH, seed=seed, world=World(rank, size, rank, size))


def left(stream: MixedStream) -> Iterator[Batch]:
    """What iteration yields until all epochs are over."""
    while stream.state_dict()["epoch"] < EPOCHS:
        yield from stream


def rows(step: int, batch: Batch) -> Seen:
    assert batch.index == step % PER_EPOCH and batch.random_key is not None
    columns = (column.tolist() for column in (batch.position, batch.object_id, batch.random_key))
    return {(step, *row, image.tobytes()) for *row, image in zip(*columns, batch.images.numpy(), strict=True)}


@pytest.fixture(scope="module")
def whole(two: Datasets) -> Seen:
    """What a stream on one rank yields without an interruption."""
    stream = mixed(two)
    assert stream.batches == PER_EPOCH
    return set().union(*(rows(step, batch) for step, batch in enumerate(stream.steps(0, PER_EPOCH * EPOCHS))))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("done", range(1, PER_EPOCH * EPOCHS, 3))
def test_ranks_see_the_same_rows_at_the_same_steps_over_an_interruption(
    two: Datasets, whole: Seen, before: int, after: int, done: int, tmp_path: Path
) -> None:
    """After `done` steps, `after` ranks go on in place of `before`; most places are inside two passes."""
    found: list[Seen] = []
    states = []
    for rank in range(before):
        stream = mixed(two, rank, before)
        batches = left(stream)
        found += [rows(step, next(batches)) for step in range(done)]
        states.append(stream.state_dict())
        batches.close()  # type: ignore[attr-defined]
    assert all(state == states[0] for state in states) and json.loads(json.dumps(states[0])) == states[0]
    torch.save(states[0], tmp_path / "state.pt")
    for rank in range(after):
        stream = mixed(two, rank, after)
        stream.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        found += [rows(step, batch) for step, batch in enumerate(left(stream), done)]
    assert sum(map(len, found)) == len(whole) == BATCH * PER_EPOCH * EPOCHS
    assert set().union(*found) == whole


def test_a_state_of_other_datasets_weights_or_seed_is_refused(two: Datasets) -> None:
    state = mixed(two).state_dict()
    others = [(two.folders[::-1], (0.3, 0.7)), (two.folders, (0.5, 0.5))]
    for folders, weights in others:
        with pytest.raises(
            BadInput, match="state of a stream: dataset was .*: the objects would come in anoth"
        ):
            mixed(Datasets(folders, weights)).load_state_dict(state)
    with pytest.raises(BadInput, match="state of a stream: seed was 1 and is 2"):
        mixed(two, seed=2).load_state_dict(state)
    mixed(Datasets(two.folders, (0.701, 0.299))).load_state_dict(state)  # the same shares of a batch
