"""Exact sums and quantiles: equal to numpy's, and independent of order, blocks and ranks."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz.evaluation.scoring.exact import ExactSums, exact_quantiles
from hpcphotoz.ranks import ALONE

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
PROBABILITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.997, 1.0)


def in_blocks(values: Floats, group: Ints, size: int) -> Iterator[tuple[Floats, Ints]]:
    for start in range(0, len(values), size):
        yield values[start : start + size], group[start : start + size]


@pytest.mark.parametrize("kind", ["wide", "ties", "tiny", "one"])
def test_quantiles_are_those_of_numpy(kind: str) -> None:
    rng = np.random.default_rng(0)
    n = 1 if kind == "one" else 3001
    values = (rng.normal(size=n) * 10.0 ** rng.uniform(-30, 30, n)).astype(np.float32)
    if kind == "ties":
        values = rng.integers(-2, 3, n).astype(np.float32) * np.float32(-0.1)  # with zeros of both signs
    if kind == "tiny":
        values = (rng.normal(size=n) * 1e-41).astype(np.float32)  # subnormal numbers
    group = rng.integers(0, 3, n) * 2  # groups 1 and 3 are empty
    found = exact_quantiles(lambda: in_blocks(values, group, 100), 6, PROBABILITIES, ALONE)
    for g in range(6):
        mine = values[group == g].astype(np.float64)
        if len(mine):
            np.testing.assert_array_equal(found[g], np.quantile(mine, PROBABILITIES))
        else:
            assert np.isnan(found[g]).all()


def test_sums_are_exact_in_any_order() -> None:
    rng = np.random.default_rng(1)
    values = (rng.normal(size=2000) * 10.0 ** rng.uniform(-38, 30, 2000)).astype(np.float32)
    values[:4] = 3e38, -3e38, 1e-45, 0
    group = rng.integers(0, 2, 2000)
    exact = [float(sum(Fraction(float(x)) for x in values[group == g])) for g in range(2)]
    for order in (np.arange(2000), rng.permutation(2000)):
        sums = ExactSums(2)
        for block, of in in_blocks(values[order], group[order], 333):
            sums.add(block, of)
        assert sums.totals(ALONE).tolist() == exact
