"""Shares of several datasets in a global batch, and their passes: pure functions."""

from collections import Counter

import numpy as np
import pytest

from hpcphotoz.data.order import attacked_mask, rank_slice
from hpcphotoz.data.stream.shares import Passes, PassSlots, dataset_of_positions, round_shares


@pytest.mark.parametrize(
    ("weights", "size", "shares"),
    [
        ((0.7, 0.3), 16, (11, 5)),
        ((7, 3), 10, (7, 3)),
        ((1, 1, 1), 16, (6, 5, 5)),
        ((1,), 16, (16,)),
        ((1e-300, 1e300), 16, (0, 16)),
        ((1e308, 1e308), 16, (8, 8)),  # their sum is no float
        ((0.999, 0.001), 128, (128, 0)),
    ],
)
def test_weights_are_rounded_to_whole_objects(
    weights: tuple[float, ...], size: int, shares: tuple[int, ...]
) -> None:
    assert round_shares(weights, size) == shares


def test_shares_are_within_one_object_of_the_weights() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        weights, size = rng.uniform(0.01, 9, rng.integers(1, 7)), int(rng.integers(1, 3000))
        shares = round_shares(weights.tolist(), size)
        assert sum(shares) == size
        assert np.abs(shares - weights / weights.sum() * size).max() < 1


def test_each_slice_of_positions_and_the_attacked_ones_hold_all_datasets() -> None:
    shares, world = (96, 24, 8), 4
    count = np.zeros((world, 3))
    attacked = np.zeros(3)
    mask = attacked_mask(np.arange(128), 0.5)
    steps = 400
    for step in range(steps):
        found = dataset_of_positions(shares, 7, step)
        assert np.bincount(found).tolist() == list(shares)
        attacked += np.bincount(found[mask], minlength=3)
        for rank in range(world):
            count[rank] += np.bincount(found[rank_slice(128, rank, world)], minlength=3)
    # Of `share` objects a half is drawn in each step: 5 standard deviations of the mean over the steps.
    spread = 5 * np.sqrt(np.array(shares) / 4 / steps)
    assert (np.abs(attacked / steps - np.array(shares) / 2) < spread).all()
    assert (np.abs(count / steps - np.array(shares) / world) < spread).all()
    assert len({dataset_of_positions(shares, 7, step).tobytes() for step in range(50)}) == 50


@pytest.mark.parametrize(("rows", "share"), [(8, 5), (16, 4), (5, 5), (6, 5), (7, 1), (29, 12)])
def test_passes_follow_each_other_without_a_gap(rows: int, share: int) -> None:
    """Batches of the passes, one after the other, fill every part once and every pass with all its rows."""
    passes, filled, objects = Passes(rows, share), Counter[tuple[int, int]](), Counter[int]()
    starts: dict[int, tuple[int, int]] = {}
    for number in range(12):
        left, batch = rows, 0
        while left:
            head = passes.head(number)
            size = head if head and not batch else min(share, left)
            step, first = passes.place(number, batch)
            starts.setdefault(step, (number, batch))
            filled.update((step, first + k) for k in range(size))
            objects[number] += size
            left, batch = left - size, batch + 1
    complete = 12 * rows // share
    assert all(filled[step, k] == 1 for step in range(complete) for k in range(share))
    assert set(objects.values()) == {rows}
    assert all(passes.at(step) == starts[step] for step in range(complete)), "a run continues at any step"


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_divide_every_batch_of_a_pass(world: int) -> None:
    passes, shares = Passes(23, 9), (9, 5)

    def slots(rank: int, number: int) -> PassSlots:
        def of_part(step: int) -> slice:
            mine = np.cumsum(dataset_of_positions(shares, 1, step) == 0)
            ends = rank_slice(14, rank, world)
            return slice(*(int(mine[end - 1]) if end else 0 for end in (ends.start, ends.stop)))

        return PassSlots(passes, number, of_part)

    for number in range(4):
        head = passes.head(number)
        sizes = ([head] if head else []) + [9] * ((23 - head) // 9)
        sizes += [23 - sum(sizes)] if sum(sizes) < 23 else []
        for batch, size in enumerate(sizes):
            found = [slots(rank, number)(batch, size) for rank in range(world)]
            assert [k for s in found for k in range(s.start, s.stop)] == list(range(size))
