"""Identifiers of stamps of one object in several runs."""

import numpy as np
import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import (
    RUN_FACTOR,
    epoch_ids,
)

SDSS = 1237661971724599442  # 19 digits: a float64 keeps 16 of them


def test_stamp_ids_of_several_runs() -> None:
    ids, runs = np.array([5, 5, 6]), np.array([94, 752, 94])
    stamps, rule = epoch_ids(ids, runs)
    assert (
        stamps.tolist() == [5 * RUN_FACTOR + 94, 5 * RUN_FACTOR + 752, 6 * RUN_FACTOR + 94]
        and "1000000 + run" in rule
    )
    # SDSS's ids do not fit that rule. Consecutive ids and runs are what a weak hash would collide on.
    ids = np.repeat(SDSS + np.arange(20_000), 50)
    runs = np.tile(94 + np.arange(50), 20_000)
    stamps, rule = epoch_ids(ids, runs)
    assert "SplitMix64" in rule and len(np.unique(stamps)) == len(ids) and stamps.min() >= 0
    # The rule as written down, in Python's own integers.
    assert stamps[1] == mix(mix(SDSS) + 95) >> 1
    # Ids from 2^63 on, stored less 2^64, and negative ones.
    large = np.array([2**63 + 5, 2**64 - 1], np.uint64).view(np.int64)
    stamps, rule = epoch_ids(large, np.array([94, 94]))
    assert stamps.tolist() == [mix(mix(one) + 94) >> 1 for one in (2**63 + 5, 2**64 - 1)]
    assert epoch_ids(np.array([-5]), np.array([94]))[0].tolist() == [-5 * RUN_FACTOR + 94]
    with pytest.raises(BadInput, match=f"object_id {SDSS} in run 94 and {SDSS} in run 94"):
        epoch_ids(np.array([SDSS, SDSS]), np.array([94, 94]))


def mix(x: int) -> int:
    """SplitMix64's finaliser."""
    word = 2**64 - 1
    x &= word
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & word
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & word
    return x ^ (x >> 31)
