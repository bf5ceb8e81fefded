"""Exact sums and quantiles of float32 values that pass by in blocks and are divided over ranks.

Both are made of whole numbers, which are added in any order with one result: they depend on the values alone,
not on their order or on the number of ranks. Memory does not depend on the number of values.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.ranks import Ranks

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
GroupedBlocks = Callable[[], Iterable[tuple[Floats, Ints]]]  # values (m,), and the group of each from 0

_DIGITS = ((21, 11), (10, 11), (0, 10))  # shift and bits of a key's digits, the highest first
_BITS, _OFFSET, _EXPONENTS = 24, 160, 320  # of a float32's mantissa; exponents are from -148 to 128


def sum_over_ranks(counts: Ints, ranks: Ranks) -> Ints:
    """Add the counts of all ranks, on every rank; what is exchanged are the counts that are not zero."""
    if ranks.size == 1:
        return counts
    flat = counts.reshape(-1)
    place = np.flatnonzero(flat)
    total = np.zeros_like(flat)
    for where, number in ranks.allgather((place, flat[place])):
        total[where] += number
    return total.reshape(counts.shape)


class ExactSums:
    """Sums of float32 values in groups: mantissas are added as whole numbers, one sum for each exponent."""

    def __init__(self, groups: int) -> None:
        self._sums = np.zeros((groups, _EXPONENTS), np.int64)

    def add(self, values: Floats, group: Ints) -> None:
        """Add values (m,) to the sums of their groups (m,); at most 2^29 values at a time."""
        mantissa, exponent = np.frexp(values)
        place = group * _EXPONENTS + exponent + _OFFSET
        whole = np.ldexp(mantissa.astype(np.float64), _BITS)  # float64 adds 2^29 of them without rounding
        self._sums += np.bincount(place, whole, self._sums.size).astype(np.int64).reshape(self._sums.shape)

    def totals(self, ranks: Ranks) -> npt.NDArray[np.float64]:
        """The sums over all ranks, (groups,), each rounded once."""
        rows = sum_over_ranks(self._sums, ranks).tolist()
        whole = [sum(number << k for k, number in enumerate(row) if number) for row in rows]
        return np.array([number / (1 << (_OFFSET + _BITS)) for number in whole])


def exact_quantiles(
    blocks: GroupedBlocks, groups: int, probabilities: Sequence[float], ranks: Ranks
) -> npt.NDArray[np.float64]:
    """Quantiles of each group, as `numpy.quantile` interpolates them, (groups, probabilities).

    Three passes over the values count the digits of 11, 11 and 10 bits of the ordered whole numbers that
    float32 values are (radix selection).

    Args:
        blocks: called for each pass; values without NaN.
        groups: number of groups; a group without a value has NaN.
        probabilities: from 0 to 1.
        ranks: ranks that share the values.
    """
    p = np.asarray(probabilities, np.float64)
    known = np.arange(
        groups, dtype=np.int64
    )  # codes, a group and the digits so far, that hold a wanted value
    code, position = np.zeros(0, np.int64), np.zeros((0, 0))
    sizes, rank = np.zeros(groups, np.int64), np.zeros(0, np.int64)
    for number, (shift, bits) in enumerate(_DIGITS):
        counts = sum_over_ranks(_count_digits(blocks, known, shift, bits), ranks)
        if number == 0:
            sizes = counts.sum(axis=1)
            position = p * np.maximum(sizes - 1, 0)[:, None]
            below = np.floor(position).astype(np.int64)
            rank = np.stack([below, np.minimum(below + 1, np.maximum(sizes - 1, 0)[:, None])])
            wanted = np.broadcast_to(sizes[:, None] > 0, rank.shape)
            code = np.broadcast_to(known[:, None], rank.shape)[wanted]
            rank = rank[wanted]
        cumulative = np.concatenate([[0], np.cumsum(counts)])
        row = np.searchsorted(known, code) << bits
        place = np.searchsorted(cumulative, cumulative[row] + rank, side="right") - 1
        rank = rank + cumulative[row] - cumulative[place]
        code = (code << bits) | (place - row)
        known = np.unique(code)
    found = np.full((2, *position.shape), np.nan)
    found[np.broadcast_to(sizes[:, None] > 0, found.shape)] = _from_keys(
        (code & 0xFFFFFFFF).astype(np.uint32)
    )
    low, high = found
    t = position - np.floor(position)
    # As numpy: from the nearer end, so that equal ends give themselves.
    return np.asarray(np.where(t < 0.5, low + (high - low) * t, high - (high - low) * (1 - t)))


def _count_digits(blocks: GroupedBlocks, known: Ints, shift: int, bits: int) -> Ints:
    """Number of values with each next digit, (known, 2^bits), among those of a known code."""
    counts = np.zeros(len(known) << bits, np.int64)
    for values, group in blocks() if len(known) else ():
        key = _keys(values).astype(np.int64)
        code = (group << (32 - shift - bits)) | (key >> (shift + bits))
        row = np.minimum(np.searchsorted(known, code), len(known) - 1)
        hit = known[row] == code
        digit = (key[hit] >> shift) & ((1 << bits) - 1)
        counts += np.bincount((row[hit] << bits) | digit, minlength=len(counts))
    return counts.reshape(len(known), 1 << bits)


def _keys(values: Floats) -> npt.NDArray[np.uint32]:
    """Whole numbers in the order of the values; -0 is 0."""
    bits = (np.asarray(values, np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _from_keys(keys: npt.NDArray[np.uint32]) -> npt.NDArray[Any]:
    bits = np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys)
    return bits.view(np.float32).astype(np.float64)
