"""The order of objects in an epoch, as pure functions: index bijection, windows of blocks, global batches,
slices.

Nothing here holds an array of the data set's length, and nothing depends on a rank until `rank_slice`, the
last step: the global sequence is the same for any number of ranks.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_ROUNDS = 6


def mix(x: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """Hash 64-bit words under a key: the finaliser of SplitMix64 (Steele et al. 2014), twice."""
    x = x ^ np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    for _ in range(2):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x


def key_of(*words: int) -> int:
    """One 64-bit key from several integers, for instance (seed, epoch, purpose)."""
    key = np.zeros(1, np.uint64)
    for word in words:
        key = mix(key, word)
    return int(key[0])


def permute(index: Ints, n: int, key: int) -> Ints:
    """A keyed bijection of [0, n): a Feistel network that walks its cycle back into range (Black & Rogaway
    2002).

    Args:
        index: int64 in [0, n), any shape; only these are computed: memory does not grow with n.
        n: size of the range.
        key: selects the bijection.
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    out = np.array(index, dtype=np.uint64, ndmin=1)
    walking = np.ones(out.shape, bool)
    while walking.any():
        right, left = out[walking] & low, out[walking] >> half
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (mix(right, key_of(key, round_)) & low)
        out[walking] = (left << half) | right
        walking = out >= np.uint64(n)
    return out.astype(np.int64).reshape(np.shape(index))


@dataclass(frozen=True)
class Layout:
    """Where the blocks of a dataset lie: each shard is cut into blocks of `block_rows`, its last may be
    shorter.
    """

    shard_rows: tuple[int, ...]
    block_rows: int

    def starts(self) -> Ints:
        """First block of each shard, and the number of blocks in all: (shards + 1,)."""
        blocks = -(-np.asarray(self.shard_rows, np.int64) // self.block_rows)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks)])

    def rows(self, blocks: Ints) -> tuple[Ints, Ints]:
        """Shard and row of every object of these blocks, in order: two arrays of equal length."""
        starts = self.starts()
        shard = np.searchsorted(starts, blocks, side="right") - 1
        first = (blocks - starts[shard]) * self.block_rows
        count = np.minimum(np.asarray(self.shard_rows, np.int64)[shard] - first, self.block_rows)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(shard, count), np.repeat(first, count) + within


Wanted = Callable[[Ints, Ints], npt.NDArray[np.bool_]]  # (shard, row) -> which objects belong to the subset


def windows(
    layout: Layout, window_blocks: int, key: int, wanted: Wanted | None = None
) -> Iterator[tuple[Ints, Ints]]:
    """Shard and row of every wanted object, window by window: blocks in bijective order, objects shuffled
    within.
    """
    n_blocks = int(layout.starts()[-1])
    for window, start in enumerate(range(0, n_blocks, window_blocks)):
        positions = np.arange(start, min(start + window_blocks, n_blocks))
        shard, row = layout.rows(permute(positions, n_blocks, key_of(key, 1)))
        if wanted is not None:
            keep = wanted(shard, row)
            shard, row = shard[keep], row[keep]
        mixed = permute(np.arange(len(shard)), len(shard), key_of(key, 2, window))
        yield shard[mixed], row[mixed]


def global_batches(parts: Iterator[tuple[Ints, Ints]], size: int) -> Iterator[tuple[Ints, Ints]]:
    """Cut a sequence of windows into batches of `size`; the last one may be smaller, nothing is dropped."""
    shard, row = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for more_shard, more_row in parts:
        shard, row = np.concatenate([shard, more_shard]), np.concatenate([row, more_row])
        whole = len(shard) // size * size
        for start in range(0, whole, size):
            yield shard[start : start + size], row[start : start + size]
        shard, row = shard[whole:], row[whole:]
    if len(shard):
        yield shard, row


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """The contiguous positions of a global batch of `size` that a rank takes; lengths differ by at most
    one.
    """
    return slice(size * rank // world_size, size * (rank + 1) // world_size)


def adversarial(position: Ints, fraction: float) -> npt.NDArray[np.bool_]:
    """Which positions p of a global batch are attacked: floor((p+1) f) > floor(p f), an exact, even
    fraction.
    """
    # In 2^-32 units: floor of a float product would differ between f = 0.1 (p = 9: 0.9999...) and the exact
    # rule.
    units = math.ceil(fraction * 2**32)
    return ((position + 1) * units >> 32) > (position * units >> 32)


def held_out(object_id: Ints, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which objects belong to the validation part: by hash of (seed, object id), so it is stable as shards
    are added.
    """
    return mix(object_id.astype(np.uint64), key_of(seed, 3)) < np.uint64(
        min(int(fraction * 2**64), 2**64 - 1)
    )
