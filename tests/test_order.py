"""The order of objects: a bijection, exactly once, the same for any number of ranks."""

from collections import Counter

import numpy as np
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


@given(
    sizes=shard_sizes,
    block=st.integers(1, 40),
    window=st.integers(1, 8),
    batch=st.integers(1, 70),
    world=st.integers(1, 9),
    key=st.integers(0, 2**63),
)
@settings(max_examples=80, deadline=None)
def test_every_object_exactly_once_and_no_rank_changes_the_sequence(
    sizes: list[int], block: int, window: int, batch: int, world: int, key: int
) -> None:
    layout = order.Layout(tuple(sizes), block)
    batches = list(order.global_batches(order.windows(layout, window, key), batch))
    assert all(len(shard) == batch for shard, _ in batches[:-1])
    sequence = [pair for shard, row in batches for pair in zip(shard.tolist(), row.tolist(), strict=True)]
    assert Counter(sequence) == Counter((s, r) for s, n in enumerate(sizes) for r in range(n))
    for shard, row in batches:
        slices = [order.rank_slice(len(shard), rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate([row[s] for s in slices]), row)
        lengths = [len(row[s]) for s in slices]
        assert max(lengths) - min(lengths) <= 1


def test_a_thousand_ranks_share_a_batch_evenly() -> None:
    slices = [order.rank_slice(4096, rank, 1024) for rank in range(1024)]
    assert {s.stop - s.start for s in slices} == {4}


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0])
def test_the_adversarial_fraction_is_exact_and_even(fraction: float) -> None:
    chosen = order.adversarial(np.arange(1000), fraction)
    counts = np.cumsum(chosen)
    # floor(n f) after n positions, for any n: within one of the exact share everywhere, so in any contiguous
    # slice too.
    assert np.all(np.abs(counts - fraction * np.arange(1, 1001)) <= 1)
    assert chosen.sum() == int(1000 * fraction + 1e-9)


@pytest.mark.parametrize(
    ("fraction", "n", "expected"), [(0.2, 5, 1), (0.2, 320, 64), (1 / 3, 384, 128), (0.1, 30, 3)]
)
def test_whole_shares_are_met_exactly(fraction: float, n: int, expected: int) -> None:
    assert order.adversarial(np.arange(n), fraction).sum() == expected


def test_held_out_is_a_stable_fraction() -> None:
    ids = np.arange(20000)
    held = order.held_out(ids, 0.1, seed=3)
    assert held.mean() == pytest.approx(0.1, abs=0.01)  # 5 standard errors
    assert np.array_equal(order.held_out(ids[::-1][:50], 0.1, 3), held[::-1][:50])
    assert not np.array_equal(order.held_out(ids, 0.1, 4), held)
    assert np.all(held <= order.held_out(ids, 0.2, 3)), "a larger part contains the smaller one"
    assert not order.held_out(ids, 0.0, 3).any()
