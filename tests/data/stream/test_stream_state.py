"""A stream iterated without the trainer: every object once an epoch, also over a saved and restored state."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcphotoz.config import Data
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from hpcphotoz.world import World
from tests.helpers.datasets import make_dataset, make_stamps

SMALL = Data(block_rows=4, window_blocks=3, validation=0.1)


def opened(folder: Path, world: World | None = None, **options: Any) -> Stream:
    arguments: dict[str, Any] = {"global_batch": 16, "seed": 5, "part": "all", "world": world} | options
    return Stream(folder, arguments.pop("options", SMALL), **arguments)


def ids(batch: Any) -> list[int]:
    return [int(i) for i in batch.object_id]


def test_each_iteration_is_the_next_epoch(dataset: Path) -> None:
    stream, reference = opened(dataset), opened(dataset)
    for epoch in range(3):
        assert stream.state_dict()["epoch"] == epoch and stream.state_dict()["batch"] == 0
        wanted = [ids(batch) for batch in reference.epoch(epoch)]
        assert [ids(batch) for batch in stream] == wanted
        assert sorted(sum(wanted, [])) == sorted(make_stamps(75).object_id.tolist())


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_restored_state_goes_on_with_the_next_batch(dataset: Path, stop: int, tmp_path: Path) -> None:
    """Saved after batch `stop` of epochs of 5; the state is what `torch.save` and JSON keep."""
    first = opened(dataset)
    done: list[list[int]] = []
    while len(done) < stop:
        for batch in first:
            done.append(ids(batch))
            if len(done) == stop:
                torch.save(first.state_dict(), tmp_path / "state.pt")
                break
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert json.loads(json.dumps(state)) == state
    second = opened(dataset)
    second.load_state_dict(state)
    while second.state_dict()["epoch"] < 2:
        done += [ids(batch) for batch in second]
    whole = opened(dataset)
    assert done == [ids(batch) for _ in range(2) for batch in whole]


def test_a_loop_that_breaks_goes_on_where_it_stopped(dataset: Path) -> None:
    stream, found = opened(dataset), []
    for batch in stream:
        found += ids(batch)
        break
    for batch in stream:
        found += ids(batch)
    assert sorted(found) == sorted(make_stamps(75).object_id.tolist())


def test_the_state_fits_another_world_size(dataset: Path) -> None:
    alone = opened(dataset)
    found = ids(next(iter(alone)))
    for rank in range(3):
        other = opened(dataset, World(rank, 3))
        other.load_state_dict(alone.state_dict())
        found += [number for batch in other for number in ids(batch)]
    assert sorted(found) == sorted(make_stamps(75).object_id.tolist())


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 2), (2, 1)])
@pytest.mark.parametrize("done", [1, 4, 5, 7])
def test_ranks_see_every_object_once_an_epoch_over_an_interruption(
    dataset: Path, before: int, after: int, done: int
) -> None:
    """After `done` global batches of epochs of 5, `after` ranks go on in place of `before`."""
    first = [opened(dataset, World(rank, before)) for rank in range(before)]
    found: list[list[int]] = []
    states = []
    for stream in first:
        iterator, epochs = iter(stream), 0
        for index in range(done):
            batch = next(iterator, None)
            if batch is None:
                iterator, epochs = iter(stream), epochs + 1
                batch = next(iterator)
            found += [[epochs, number] for number in ids(batch)]
            assert batch.index == index % 5
        states.append(stream.state_dict())
    assert all(state == states[0] for state in states)
    for rank in range(after):
        stream = opened(dataset, World(rank, after))
        stream.load_state_dict(states[0])
        while (epoch := stream.state_dict()["epoch"]) < 2:
            found += [[epoch, number] for batch in stream for number in ids(batch)]
    wanted = [[epoch, number] for epoch in range(2) for number in make_stamps(75).object_id.tolist()]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"seed": 6}, "seed was 5 and is 6"),
        ({"global_batch": 8}, "global_batch was 16 and is 8"),
        ({"part": "train"}, "part was 'all' and is 'train'"),
        ({"shuffle": False}, "shuffle was True and is False"),
        ({"options": SMALL.model_copy(update={"where": "z_spec < 1"})}, "where was ''"),
        ({"options": SMALL.model_copy(update={"block_rows": 8})}, "block_rows was 4 and is 8"),
        ({"options": SMALL.model_copy(update={"split_seed": 8})}, "split_seed was 0 and is 8"),
        ({"options": SMALL.model_copy(update={"split_by": "healpix:8"})}, "split_by was ''"),
    ],
)
def test_a_state_of_another_order_is_refused(dataset: Path, other: dict[str, Any], name: str) -> None:
    stream = opened(dataset, **other)
    with pytest.raises(BadInput, match=f"state of a stream: {name}.*: the objects would come in another ord"):
        stream.load_state_dict(opened(dataset).state_dict())
    assert stream.state_dict()["epoch"] == 0


def test_a_state_of_another_dataset_or_no_state_is_refused(dataset: Path, tmp_path: Path) -> None:
    stream = opened(dataset)
    with pytest.raises(BadInput, match="dataset was"):
        stream.load_state_dict(opened(make_dataset(tmp_path / "d", n=20, shard_rows=8)).state_dict())
    state = stream.state_dict()
    for change in ({"batch": -1}, {"epoch": 1.0}, {"epoch": True}):
        with pytest.raises(BadInput, match="want a whole number from 0"):
            stream.load_state_dict({**state, **change})
    with pytest.raises(BadInput, match="seed: missing, or not expected"):
        stream.load_state_dict({name: value for name, value in state.items() if name != "seed"})


def test_options_that_do_not_change_the_order_may_differ(dataset: Path) -> None:
    other = SMALL.model_copy(
        update={"read_threads": 3, "windows_ahead": 2, "verify": "never", "augment": False}
    )
    opened(dataset, options=other).load_state_dict(opened(dataset).state_dict())
