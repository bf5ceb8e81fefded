"""The order of objects is a bijection, and the same for any number of ranks."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcphotoz.data import order


@given(n=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(n: int, key: int) -> None:
    assert np.array_equal(np.sort(order.permute(np.arange(n), n, key)), np.arange(n))


def test_permute_computes_single_places_of_a_huge_range() -> None:
    n = 10**15
    some = order.permute(np.array([0, 1, n - 1]), n, 5)
    assert len(set(some.tolist())) == 3 and some.min() >= 0 and some.max() < n
    assert order.permute(np.array([1]), n, 5)[0] == some[1]


def test_permute_mixes() -> None:
    # Neighbours of a uniform permutation of n lie n/3 apart on average; 10 % is more than 5 standard errors
    # at n = 4096.
    n = 4096
    apart = np.abs(np.diff(order.permute(np.arange(n), n, 1))).mean()
    assert apart == pytest.approx(n / 3, rel=0.1)
    assert not np.array_equal(order.permute(np.arange(n), n, 1), order.permute(np.arange(n), n, 2))


shard_sizes = st.lists(st.integers(1, 90), min_size=1, max_size=6)
Pair = tuple[int, int]


def batches(windows: Iterator[order.WindowOrder], size: int) -> dict[int, list[Pair]]:
    """(shard, row) of every global batch by number, in the order of its positions."""
    found: dict[int, list[Pair]] = {}
    for window_order in windows:
        objects = list(zip(window_order.shard.tolist(), window_order.row.tolist(), strict=True))
        assert sorted(window_order.place.tolist()) == list(range(len(objects)))
        for place in range(len(objects)):
            found.setdefault(window_order.first + place // size, [])
        for k in np.argsort(window_order.place):
            found[window_order.first + int(window_order.place[k]) // size].append(objects[k])
    return found


def every(keep: float, seed: int) -> order.BlockFilter:
    """A subset of positions that depends on the object alone."""

    def wanted(blocks: order.Blocks) -> npt.NDArray[np.bool_]:
        shard, row = blocks.rows()
        words = order.keyed_hash((shard * 1000 + row).astype(np.uint64), seed)
        return words < np.uint64(keep * (2**64 - 1))

    return wanted


@given(
    sizes=shard_sizes,
    block=st.integers(1, 40),
    window=st.integers(1, 8),
    size=st.integers(1, 70),
    world=st.integers(1, 9),
    key=st.none() | st.integers(0, 2**63),
    keep=st.sampled_from([None, 0.0, 0.1, 0.5, 0.95]),
    max_rows=st.none() | st.integers(1, 200),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_every_object_exactly_once_at_any_world_size_and_across_a_resume(
    sizes: list[int],
    block: int,
    window: int,
    size: int,
    world: int,
    key: int | None,
    keep: float | None,
    max_rows: int | None,
    data: st.DataObject,
) -> None:
    layout = order.BlockLayout(tuple(sizes), block)
    wanted = None if keep is None else every(keep, 7)
    windows = list(order.windows(layout, window, size, key, wanted, max_rows=max_rows))
    assert max_rows is None or all(len(window_order.row) <= max(max_rows, size) for window_order in windows)
    whole = batches(iter(windows), size)
    objects = [(s, r) for s, n in enumerate(sizes) for r in range(n)]
    if wanted is not None:
        shard, row = np.array(objects).T
        mask = wanted(order.Blocks(shard, row, np.ones_like(row)))
        objects = [o for o, k in zip(objects, mask, strict=True) if k]
    assert list(whole) == list(range(-(-len(objects) // size)))
    assert Counter(pair for batch in whole.values() for pair in batch) == Counter(objects)
    assert all(len(batch) == size for batch in list(whole.values())[:-1])
    if key is None:
        assert [pair for batch in whole.values() for pair in batch] == objects, "the order of the disk"
    for batch in whole.values():
        slices = [order.rank_slice(len(batch), rank, world) for rank in range(world)]
        assert [pair for s in slices for pair in batch[s]] == batch
        lengths = [s.stop - s.start for s in slices]
        assert max(lengths) - min(lengths) <= 1
    # Killed after any batch and resumed: the remaining batches are those that remained.
    start = data.draw(st.integers(0, len(whole)))
    resumed = batches(order.windows(layout, window, size, key, wanted, start, max_rows), size)
    assert {k: v for k, v in resumed.items() if k >= start} == {k: v for k, v in whole.items() if k >= start}


def test_a_rank_reads_blocks_of_its_own() -> None:
    """Few blocks are split between ranks, so that reading in blocks is efficient at any world size."""
    layout = order.BlockLayout((8192,) * 4, 32)
    window_order = next(order.windows(layout, 64, 256, 5))
    position = window_order.place % 256
    block = window_order.shard * 256 + window_order.row // 32
    for world in (1, 2, 4, 8, 16):
        slices = [order.rank_slice(256, rank, world) for rank in range(world)]
        mine = [np.flatnonzero((position >= s.start) & (position < s.stop)) for s in slices]
        assert sum(len(set(block[rows].tolist())) for rows in mine) <= 64 + world, "a block at each boundary"
        runs = [1 + np.count_nonzero(np.diff(rows) != 1) for rows in mine]
        assert sum(runs) <= world + 1, "neighbours in the order of the disk, for reads of whole blocks"
    assert len(set((window_order.place // 256)[block == block[0]].tolist())) == 8, (
        "a block goes to all batches"
    )


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("shard_rows", [(256,) * 4, (256, 256, 256, 100), (1000,)], ids=str)
@pytest.mark.parametrize("size", [32, 128, 2000])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.7, 1.0])
def test_attacked_objects_are_drawn_again_each_epoch(
    fraction: float, size: int, shard_rows: tuple[int, ...], held_out: bool
) -> None:
    """Objects are attacked as often as with independent draws, but the fraction of a batch is exact."""
    layout, epochs, starts = order.BlockLayout(shard_rows, 64), 64, np.cumsum((0, *shard_rows))
    attacked = np.full((epochs, starts[-1]), -1)
    for epoch in range(epochs):
        key = order.derive_key(3, epoch)
        for window_order in order.windows(layout, 32, size, key, every(0.95, 7) if held_out else None):
            batch = min(size, len(window_order.row))
            chosen = order.attacked_mask(window_order.place % batch, fraction)
            attacked[epoch, starts[window_order.shard] + window_order.row] = chosen
            counts = np.bincount(window_order.place // batch, chosen)
            assert np.all(counts == order.attacked_mask(np.arange(batch), fraction).sum())
    attacked = attacked[:, attacked[0] >= 0]
    assert attacked.min() >= 0, "every object in every epoch"
    f = attacked.mean()
    if fraction == 1:
        assert f == 1
        return
    # Of 1000 objects the largest of the standardised counts is about 3.3, their variance 1 +- 0.045; both are
    # larger for the coarse counts of small fractions, and neighbours are not quite independent.
    counts = (attacked.sum(0) - epochs * f) / np.sqrt(epochs * f * (1 - f))
    assert np.abs(counts).max() < 5.5 and counts.var() == pytest.approx(1, abs=0.3)
    after = np.mean((attacked[1:] - f) * (attacked[:-1] - f)) / (f * (1 - f))
    assert abs(after) < 0.03, "an epoch says nothing of the next: 5 standard errors of 63,000 pairs are 0.02"


@pytest.mark.parametrize(("fraction", "epochs"), [(1 / 16, 60), (1 / 32, 60), (0.01, 150)])
def test_small_fractions_leave_no_object_out_for_ever(fraction: float, epochs: int) -> None:
    """As many objects are never attacked as by independent draws, wherever they are in their blocks.

    With four batches a window the objects of a block come to 16 positions, of which one is attacked.
    """
    layout = order.BlockLayout((1024, 1024), 64)
    times = np.zeros((2, 1024), np.int64)
    for epoch in range(epochs):
        for window_order in order.windows(layout, 8, 128, order.derive_key(3, epoch)):
            chosen = order.attacked_mask(window_order.place % 128, fraction)
            np.add.at(times, (window_order.shard[chosen], window_order.row[chosen]), 1)
    f = times.mean() / epochs
    assert f == pytest.approx(fraction, rel=0.3), "a whole number of each batch"
    # A tenth of these 2048 objects is 205 +- 14; neighbours are not quite independent.
    assert (times == 0).mean() == pytest.approx((1 - f) ** epochs, abs=0.04)
    offset = times.reshape(2, 16, 64).mean((0, 1)) / epochs  # by the place in a block of 32 objects
    assert np.abs(offset - f).max() < 6 * math.sqrt(f * (1 - f) / (32 * epochs))


def test_neighbours_on_disk_are_in_different_batches() -> None:
    """Neighbours share a batch as often as in a random permutation of their window."""
    layout = order.BlockLayout((1 << 15,), 32)
    where = np.empty(1 << 15, np.int64)
    for window_order in order.windows(layout, 64, 128, 11):
        where[window_order.row] = window_order.first * 128 + window_order.place
    apart = np.abs(np.diff(where))
    same_batch = (where[1:] // 128 == where[:-1] // 128).mean()
    # Within a window of 16 batches chance is 1/16; the standard error of 32767 pairs is 0.0013.
    assert same_batch < 1 / 16 + 0.005
    assert np.median(apart) > 128 * 3, "a third of the window's 16 batches, in the mean"


def test_a_thousand_ranks_share_a_batch_evenly() -> None:
    slices = [order.rank_slice(4096, rank, 1024) for rank in range(1024)]
    assert {s.stop - s.start for s in slices} == {4}


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0])
def test_the_adversarial_fraction_is_exact_and_even(fraction: float) -> None:
    chosen = order.attacked_mask(np.arange(1000), fraction)
    counts = np.cumsum(chosen)
    # floor(n f) after n positions, for any n: within one of the exact share everywhere, so in any contiguous
    # slice too.
    assert np.all(np.abs(counts - fraction * np.arange(1, 1001)) <= 1)
    assert chosen.sum() == int(1000 * fraction + 1e-9)


@pytest.mark.parametrize(
    ("fraction", "n", "expected"), [(0.2, 5, 1), (0.2, 320, 64), (1 / 3, 384, 128), (0.1, 30, 3)]
)
def test_fractions_that_give_whole_numbers_are_exact(fraction: float, n: int, expected: int) -> None:
    assert order.attacked_mask(np.arange(n), fraction).sum() == expected


def test_the_split_is_stable_and_of_the_right_size() -> None:
    ids = np.arange(20000)
    part = order.split_part(ids, 0.1, 0.2, seed=3)
    for number, share in enumerate((0.7, 0.1, 0.2)):
        assert (part == number).mean() == pytest.approx(share, abs=0.015)  # 5 standard errors
    assert np.array_equal(order.split_part(ids[::-1][:50], 0.1, 0.2, 3), part[::-1][:50])
    assert not np.array_equal(order.split_part(ids, 0.1, 0.2, 4), part)
    assert np.array_equal(order.split_part(ids, 0.3, 0.2, 3) == 2, part == 2), "validation does not move test"
    assert np.array_equal(order.split_part(ids, 0.1, 0.5, 3) == 1, part == 1), "test does not move validation"
    assert np.all((part == 1) <= (order.split_part(ids, 0.2, 0.2, 3) == 1)), "a larger part holds the smaller"
    assert not order.split_part(ids, 0.0, 0.0, 3).any()
