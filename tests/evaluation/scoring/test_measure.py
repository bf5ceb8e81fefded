"""Metrics from blocks: those of `metrics.summary`, with the errors that resampling objects gives."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.scoring.bootstrap import RESAMPLINGS
from hpcphotoz.evaluation.scoring.measure import SCORES, Measured, ScoredBlock, measure_groups
from hpcphotoz.ranks import ALONE, Ranks


def scored(n: int, groups: int = 1, seed: int = 0) -> ScoredBlock:
    """Redshifts with outliers, and PITs of PDFs that are too narrow."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(0, 0.4, n)
    phot = z + rng.normal(0.004, 0.02, n) * (1 + z) * rng.choice([1, 1, 1, 4], n)
    pit = np.clip(0.5 + rng.normal(0, 0.35, n), 0, 1)
    others = rng.gamma(2, 0.01, n), rng.normal(-5, 1, n), rng.uniform(0, 2, n), rng.random(n)
    scores = np.stack([phot, pit, *others]).astype(np.float32)
    return ScoredBlock(scores, z.astype(np.float32), rng.integers(0, groups, n))


def in_blocks(block: ScoredBlock, size: int) -> Iterator[ScoredBlock]:
    for start in range(0, len(block.z_spec), size):
        yield block[start : start + size]


def summary(block: ScoredBlock) -> dict[str, float]:
    scores = {name: block.column(name) for name in SCORES}
    return metrics.summary(block.column("z_phot"), block.z_spec, **scores)


def test_metrics_of_groups_are_those_of_their_objects() -> None:
    block = scored(4000, groups=3)
    found = measure_groups(lambda: in_blocks(block, 700), 4, ALONE)
    assert found[3].metrics == {} == found[3].errors
    for g in range(3):
        expected = summary(block[block.group == g])
        assert list(found[g].metrics) == list(expected)
        # float32 scores; the PITs of the three statistics are moved by at most 2^-17.
        for name, value in expected.items():
            allowed = 2e-5 if name == "pit_ks" else 2e-3 * value if name in ("pit_cvm", "pit_ad") else 1e-6
            assert found[g].metrics[name] == pytest.approx(value, rel=1e-5, abs=allowed), name
        assert found[g].errors.keys() == expected.keys() - {"n"}
        assert found[g].pit_counts.sum() == expected["n"]


def test_the_order_and_the_blocks_change_no_bit() -> None:
    block = scored(2500)
    order = np.random.default_rng(3).permutation(2500)
    shuffled = block[order]
    one, other = (
        measure_groups(lambda of=of, size=size: in_blocks(of, size), 1, ALONE)[0]  # type: ignore[misc]
        for of, size in ((block, 2500), (shuffled, 11))
    )
    assert one.metrics == other.metrics and one.errors == other.errors


class ThreadCommunicator:
    """Connects ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._slots, self._barrier = rank, size, slots, barrier

    def allgather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait(60)
        found = list(self._slots)
        self._barrier.wait(60)
        return found

    def broadcast(self, value: Any) -> Any:
        return self.allgather(value)[0]

    def ask_to_stop(self) -> None: ...
    def stop_asked(self) -> bool:
        return False

    def end_stop(self, asked: Sequence[int]) -> None: ...


def test_ranks_find_the_bits_of_one_process() -> None:
    """Of four ranks, the last of which has no object."""
    block = scored(1500, groups=3, seed=2)
    alone = measure_groups(lambda: [block], 3, ALONE)
    cuts, slots, barrier = [0, 10, 900, 1500, 1500], [None] * 4, threading.Barrier(4)

    def work(rank: int) -> list[Measured]:
        mine = block[cuts[rank] : cuts[rank + 1]]
        communicator = ThreadCommunicator(rank, 4, slots, barrier)
        return measure_groups(lambda: in_blocks(mine, 100), 3, Ranks(communicator))

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            for one, expected in zip(found, alone, strict=True):
                assert one.metrics == expected.metrics and one.errors == expected.errors


def test_errors_are_those_of_resampled_objects() -> None:
    block = scored(3000, seed=5)
    found = measure_groups(lambda: [block], 1, ALONE)[0].errors
    rng = np.random.default_rng(6)
    resampled = [summary(block[rows]) for rows in (rng.integers(0, 3000, 3000) for _ in range(300))]
    for name, error in found.items():
        spread = np.std([one[name] for one in resampled])
        # Of 300 and of 200 resamplings: 4 and 5 %; three times both, and the binning.
        assert RESAMPLINGS == 200
        assert error == pytest.approx(spread, rel=0.25), name


def test_one_object_and_equal_objects_have_metrics_without_error() -> None:
    one = scored(1)
    same = one[np.zeros(40, np.int64)]
    for block in (one, same):
        found = measure_groups(lambda block=block: [block], 1, ALONE)[0]  # type: ignore[misc]
        assert found.errors["bias"] == pytest.approx(0, abs=1e-9) and found.errors["eta"] == 0
        assert found.errors["sigma_mad"] < 1e-12
        assert found.metrics["sigma_mad"] == 0
