"""Pure functions for batches of several datasets: each one's share, where its passes end, and who reads what.

The part of a global batch that comes from one dataset has always the same size. A pass over the dataset need
not fill a whole number of parts: the last objects of a pass and the first of the next one then share a part.

    parts of 5:   | a b c d e | f g h|A B | C D E F G | H ...     8 objects: pass 0 in small letters, pass 1
                                      ^^^ the head of pass 1: a batch of 2 objects

Everything follows from the step of training, so that a run continues at any step, on any number of ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from hpcphotoz.data.order import Int64Array, derive_key, keyed_hash

_PLACES = 11  # purpose of these random numbers, different from that of all others


def round_shares(weights: Sequence[float], size: int) -> tuple[int, ...]:
    """Whole numbers with the sum `size`, as near to the weights as can be (largest remainder, Hamilton).

    Args:
        weights: positive and finite; only their ratios matter.
        size: objects of a global batch.
    """
    exact = [Fraction(weight) for weight in weights]
    wanted = [weight * size / sum(exact) for weight in exact]
    shares = [int(share) for share in wanted]
    by_remainder = sorted(range(len(wanted)), key=lambda k: (shares[k] - wanted[k], k))
    for k in by_remainder[: size - sum(shares)]:
        shares[k] += 1
    return tuple(shares)


@lru_cache(maxsize=512)
def dataset_of_positions(shares: tuple[int, ...], seed: int, step: int) -> Int64Array:
    """The dataset from which each position of a step's global batch takes its object: (sum(shares),) int64.

    They are in random order, another one in each step: so every contiguous slice of positions holds objects
    of all datasets, and the positions that are attacked, which are evenly spaced, favour none.
    """
    datasets = np.repeat(np.arange(len(shares)), shares)
    words = keyed_hash(np.arange(len(datasets)).astype(np.uint64), derive_key(seed, _PLACES, step))
    found = datasets[np.argsort(words, kind="stable")]
    found.flags.writeable = False  # it is cached
    return found


@dataclass(frozen=True)
class Passes:
    """How passes over a dataset fill parts of global batches. A pass has batches: a head, parts, a tail."""

    rows: int  # objects of the dataset
    share: int  # objects of a part, at most `rows`

    def head(self, number: int) -> int:
        """Objects of the first batch of a pass that shares its part with the pass before; 0: none does."""
        return -number * self.rows % self.share

    def at(self, step: int) -> tuple[int, int]:
        """The pass and the number of its batch with which the part of a step begins."""
        number, first = divmod(step * self.share, self.rows)
        head = self.head(number)
        return number, (first - head) // self.share + bool(head)

    def place(self, number: int, batch: int) -> tuple[int, int]:
        """The step of a batch of a pass, and the position in the part at which the batch begins."""
        head = self.head(number)
        first = (head + (batch - 1) * self.share if head else batch * self.share) if batch else 0
        return divmod(number * self.rows + first, self.share)


@dataclass(frozen=True)
class PassSlots:
    """The positions of one rank in the batches of one pass over a dataset."""

    passes: Passes
    number: int  # of the pass
    of_part: Callable[[int], slice]  # positions of the rank in the part of a step

    @property
    def head(self) -> int:
        """Objects of the first batch, if it is smaller than the others; else 0."""
        return self.passes.head(self.number)

    def __call__(self, batch: int, size: int) -> slice:
        """Positions of the rank in a batch of `size` objects."""
        step, first = self.passes.place(self.number, batch)
        part = self.of_part(step)
        low, high = (min(max(end - first, 0), size) for end in (part.start, part.stop))
        return slice(low, high)
