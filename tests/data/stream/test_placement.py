"""The places of objects agree with what the ranks of a run really read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcphotoz.config import Data
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.stream.mixture import MixedStream, open_training_stream
from hpcphotoz.data.stream.placement import placements
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.world import World
from tests.helpers.datasets import make_stamps, write_stamps

OPTIONS = Data(block_rows=4, window_blocks=3, validation=0.2)
Places = dict[tuple[int, int], int]  # step, position: object id


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    folder = tmp_path_factory.mktemp("two")
    folders = [write_stamps(folder / "ab"[k], make_stamps(n, seed=k)) for k, n in enumerate((37, 23))]
    return Datasets(tuple(folders), (0.7, 0.3))


def opened(data: Datasets, rank: int = 0, size: int = 1, **options: Any) -> Stream | MixedStream:
    chosen = OPTIONS.model_copy(update=options)
    return open_training_stream(data, chosen, global_batch=16, seed=1, world=World(rank, size, rank, size))


def read(data: Datasets, size: int, first: int, last: int) -> Iterator[Places]:
    """What each rank reads."""
    for rank in range(size):
        found: Places = {}
        stream = opened(data, rank, size)
        batches = (batch for run in stream.runs(first, 1 + last // stream.batches) for batch in run)
        for step, batch in zip(range(first, last), batches, strict=False):
            places = zip(batch.position.tolist(), batch.object_id.tolist(), strict=True)
            found |= {(step, position): number for position, number in places}
        yield found


def planned(data: Datasets, first: int, last: int) -> Places:
    stream, found = opened(data), {}
    for window in placements(stream, first, last):
        part = stream.parts[window.dataset]
        ones = np.ones_like(window.row)
        ids = part.files.columns(Blocks(window.shard, window.row, ones), ["object_id"])["object_id"]
        for step, position, number in zip(window.step.tolist(), window.position.tolist(), ids, strict=True):
            assert (step, position) not in found
            found[step, position] = int(number)
    return found


@pytest.mark.parametrize(("first", "last"), [(0, 2), (0, 9), (3, 8), (4, 5)])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("several", [False, True])
def test_places_are_those_of_the_ranks(
    several: bool, size: int, first: int, last: int, dataset: Path, two: Datasets
) -> None:
    data = two if several else Datasets.of(dataset)
    want: Places = {}
    for of_rank in read(data, size, first, last):
        assert not want.keys() & of_rank.keys()
        want |= of_rank
    assert planned(data, first, last) == want and want
