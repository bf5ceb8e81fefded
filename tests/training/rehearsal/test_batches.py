"""Global batches divided among ranks, and the check that every object comes once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.order import attacked_mask, rank_slice
from hpcphotoz.data.read.readers import ContiguousReader
from hpcphotoz.data.stream.mixture import open_training_stream
from hpcphotoz.data.stream.placement import Placement, placements
from hpcphotoz.data.stream.window import Window
from hpcphotoz.training.rehearsal import batches
from hpcphotoz.training.rehearsal.batches import check_order, divide, rank_of_positions
from hpcphotoz.training.rehearsal.reads import count_reads, number_of_blocks
from hpcphotoz.world import World
from tests.helpers.training.runs import config


def stream(dataset: Path, rank: int = 0, size: int = 1) -> Any:
    options, world = config(), World(rank, size, rank, size)
    return open_training_stream(Datasets.of(dataset), options.data, global_batch=16, seed=0, world=world)


@pytest.mark.parametrize(("size", "ranks"), [(16, 1), (16, 3), (3, 8), (0, 4), (1000, 96), (4096, 1024)])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_division_is_that_of_the_ranks(size: int, ranks: int, fraction: float) -> None:
    found, mask = divide(size, ranks, fraction), attacked_mask(np.arange(size), fraction)
    slices = [rank_slice(size, rank, ranks) for rank in range(ranks)]
    assert found.objects.tolist() == [len(mask[each]) for each in slices]
    assert found.attacked.tolist() == [int(mask[each].sum()) for each in slices]
    owners = rank_of_positions(np.arange(size), size, ranks)
    assert all((owners[each] == rank).all() for rank, each in enumerate(slices))
    assert found.idle == max(ranks - size, 0)


def test_ranks_without_an_attacked_object() -> None:
    assert divide(16, 8, 0.25).without_attack == 4
    assert divide(16, 8, 0.5).without_attack == 0
    assert divide(16, 8, 0.0).without_attack == 0, "nothing is attacked at all"


def test_an_order_that_is_whole(dataset: Path) -> None:
    found = check_order(stream(dataset), 7)
    assert found.problem == "" and found.whole and found.objects == stream(dataset).rows
    part = check_order(stream(dataset), 0, most=32)
    assert part.problem == "" and not part.whole and (part.steps, part.objects) == (2, 32)


def dropped(one: Placement) -> Placement:
    return replace(one, **{k: getattr(one, k)[1:] for k in ("shard", "row", "step", "position")})


def repeated(one: Placement) -> Placement:
    return replace(one, row=np.where(one.row == one.row[0], one.row[1], one.row), shard=one.shard * 0)


def elsewhere(one: Placement) -> Placement:
    return replace(one, position=np.where(one.position == 3, 4, one.position))


@pytest.mark.parametrize(
    ("wrong", "want"), [(dropped, "has no object"), (repeated, "come twice"), (elsewhere, "or several")]
)
def test_an_order_that_is_wrong(
    wrong: Callable[[Placement], Placement], want: str, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "placements", lambda *given: map(wrong, placements(*given)))
    assert want in check_order(stream(dataset), 0).problem


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_reads_are_those_of_the_windows(ranks: int, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs on every rank: rows, runs of neighbouring rows of each window, and files."""
    runs: list[int] = []
    files: set[int] = set()
    rows: list[int] = []
    make, read = Window.__init__, ContiguousReader.read

    def spied(self: Window, *given: Any, **more: Any) -> None:
        make(self, *given, **more)
        files.update(self._shard.tolist())
        rows.append(len(self._row))

    def counted(self: ContiguousReader, first: int, views: Sequence[memoryview]) -> None:
        runs.append(1)
        read(self, first, views)

    monkeypatch.setattr(Window, "__init__", spied)
    monkeypatch.setattr(ContiguousReader, "read", counted)
    steps = 2 * stream(dataset).batches
    found = count_reads(stream(dataset), 0, steps, ranks)
    assert found.steps == steps
    for rank in range(ranks):
        runs.clear()
        rows.clear()
        files.clear()
        own = stream(dataset, rank, ranks)
        for epoch in range(2):
            for _ in own.epoch(epoch):
                pass
        assert (found.runs[rank], found.files[rank], found.rows[rank]) == (sum(runs), len(files), sum(rows))


def test_blocks_of_all_shards(dataset: Path) -> None:
    assert number_of_blocks(stream(dataset)) == 4 + 4 + 2  # 32, 32 and 11 rows in blocks of 8
