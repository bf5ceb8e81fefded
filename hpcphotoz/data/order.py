"""Pure functions for the order of objects in an epoch: a keyed bijection, windows, global batches, slices.

No function holds an array as long as the dataset. Only the last step, `rank_slice`, depends on a rank: the
global sequence is the same for any number of ranks.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
ORDER = 4  # raised whenever the same seed gives another order or another split
_ROUNDS = 6
_CELL = 8  # positions whose objects are shuffled among themselves; ranks' slices are often multiples of it


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014, Vigna's constants): a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_hash(x: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """Hash 64-bit words under a key, by two rounds of SplitMix64."""
    x = x ^ np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    for _ in range(2):
        x = splitmix64(x + np.uint64(0x9E3779B97F4A7C15))
    return x


@lru_cache(maxsize=4096)
def derive_key(*words: int) -> int:
    """One 64-bit key from several integers, for instance (seed, epoch, purpose)."""
    key = np.zeros(1, np.uint64)
    for word in words:
        key = keyed_hash(key, word)
    return int(key[0])


def permute(index: Int64Array, n: int, key: int) -> Int64Array:
    """Apply a keyed bijection of [0, n) to some indices.

    A Feistel network permutes the smallest range [0, 4^k) that holds [0, n); a result outside [0, n) is
    permuted again (cycle walking, Black & Rogaway 2002).

    Args:
        index: int64 in [0, n), any shape; memory grows with its size and not with n.
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
            left, right = right, left ^ (keyed_hash(right, derive_key(key, round_)) & low)
        out[walking] = (left << half) | right
        walking = out >= np.uint64(n)
    return out.astype(np.int64).reshape(np.shape(index))


@dataclass(frozen=True)
class Blocks:
    """Runs of neighbours on disk: `count` rows of `shard` from row `first`; three (n,) int64 arrays."""

    shard: Int64Array
    first: Int64Array
    count: Int64Array

    @classmethod
    def single(cls, shard: int, first: int, count: int) -> "Blocks":
        """One block."""
        return cls(np.array([shard]), np.array([first]), np.array([count]))

    def rows(self) -> tuple[Int64Array, Int64Array]:
        """Shard and row of every object, block after block."""
        within = np.arange(self.count.sum()) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        return np.repeat(self.shard, self.count), np.repeat(self.first, self.count) + within


@dataclass(frozen=True)
class BlockLayout:
    """How shards are cut into blocks of `block_rows` rows; the last block of a shard may be shorter."""

    shard_rows: tuple[int, ...]
    block_rows: int

    @cached_property
    def starts(self) -> Int64Array:
        """First block of each shard, and the number of blocks in all: (shards + 1,)."""
        blocks = -(-np.asarray(self.shard_rows, np.int64) // self.block_rows)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks)])

    def blocks(self, number: Int64Array) -> Blocks:
        """The blocks of these numbers, 0 to `starts[-1] - 1` in the order of the disk."""
        shard = np.searchsorted(self.starts, number, side="right") - 1
        first = (number - self.starts[shard]) * self.block_rows
        rows = np.array([self.shard_rows[k] for k in shard], np.int64)
        return Blocks(shard, first, np.minimum(rows - first, self.block_rows))


BlockFilter = Callable[[Blocks], npt.NDArray[np.bool_]]  # which of the blocks' rows belong to the subset


@dataclass(frozen=True)
class WindowOrder:
    """Objects of one window in the order of their blocks, and the batch and position of each.

    Object k has position `place[k] % size` in global batch `first + place[k] // size`. All batches of a
    window are whole, except the last of an epoch and a `head`: the objects left over go to the next window.
    A window with many objects of the subset is cut into several.
    """

    first: int  # number of the window's first batch in the epoch
    shard: Int64Array  # (n,)
    row: Int64Array  # (n,)
    place: Int64Array  # (n,) a permutation of 0 .. n - 1


def windows(
    layout: BlockLayout,
    window_blocks: int,
    size: int,
    key: int | None,
    block_filter: BlockFilter | None = None,
    start: int = 0,
    max_rows: int | None = None,
    head: int = 0,
) -> Iterator[WindowOrder]:
    """Yield an epoch's windows: blocks in permuted order, whose objects are shuffled into global batches.

    Objects that fill no whole batch join the next window; none is dropped. Neighbouring positions of a batch
    take their objects from neighbouring blocks, so that a rank reads blocks of its own as a whole. The batch
    and the position of an object are random: see `batch_places`.

    Args:
        layout: the blocks.
        window_blocks: blocks a window.
        size: objects a global batch.
        key: selects the order; None: the order on disk.
        block_filter: which objects belong to the subset; None: all.
        start: number of the first batch that is needed; windows before it are counted, not yielded.
        max_rows: objects a window, at least `size`; a window with more objects is cut into several. None: no
            limit.
        head: objects of a first batch that is smaller than the others; 0: there is none.
    """
    n_blocks, first = int(layout.starts[-1]), 0
    left = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    for window, number in enumerate(_permuted_blocks(n_blocks, window_blocks, key)):
        blocks = layout.blocks(number)
        shard, row = blocks.rows()
        if block_filter is not None:
            keep = block_filter(blocks)
            shard, row = shard[keep], row[keep]
        shard, row = np.concatenate([left[0], shard]), np.concatenate([left[1], row])
        if head > len(shard):
            left = (shard, row)
            continue
        if head:
            if start == 0:
                yield _window_order(0, shard[:head], row[:head], head, key, (-2,))
            shard, row, first, head = shard[head:], row[head:], 1, 0
        batches = len(shard) // size
        parts = 1 if max_rows is None else -(-batches // max(max_rows // size, 1))
        for part in range(parts):
            low, high = batches * part // parts, batches * (part + 1) // parts
            if first + high > start:
                rows = slice(low * size, high * size)
                words = (window,) if parts == 1 else (window, part)
                yield _window_order(first + low, shard[rows], row[rows], size, key, words)
        whole = batches * size
        first, left = first + batches, (shard[whole:], row[whole:])
    if len(left[0]):
        yield _window_order(first, *left, len(left[0]), key, (-1,))


def _window_order(
    first: int, shard: Int64Array, row: Int64Array, size: int, key: int | None, words: tuple[int, ...]
) -> WindowOrder:
    if key is None:
        return WindowOrder(first, shard, row, np.arange(len(row)))
    return WindowOrder(first, shard, row, batch_places(shard, row, size, derive_key(key, 2, *words)))


def _permuted_blocks(n_blocks: int, window_blocks: int, key: int | None) -> Iterator[Int64Array]:
    """Yield the block numbers of each window.

    Some 4096 blocks are permuted at a time: a call of `permute` costs as much as 1000 blocks.
    """
    some = window_blocks * -(-4096 // window_blocks)
    for begin in range(0, n_blocks, some):
        number = np.arange(begin, min(begin + some, n_blocks))
        if key is not None:
            number = permute(number, n_blocks, derive_key(key, 1))
        for first in range(0, len(number), window_blocks):
            yield number[first : first + window_blocks]


def batch_places(shard: Int64Array, row: Int64Array, size: int, key: int) -> Int64Array:
    """Places of a window's objects in its batches, drawn from the key and each object's shard and row.

    Every `len(row) // size` neighbours on disk get one position, each in another batch, at random. One random
    number rotates the positions, and within each batch the objects of every `_CELL` neighbouring positions
    are shuffled. So every object comes to every position equally often, whatever its offset in its block, and
    each key draws anew which objects are attacked (see `attacked_mask`).

    Args:
        shard, row: (n,) of the objects, n a multiple of `size`.
        size: objects a global batch.
        key: a different one for each epoch and window.

    Returns:
        (n,) permutation of 0 .. n - 1: place p is position `p % size` of batch `p // size`.
    """
    batches = len(row) // size
    words = keyed_hash((shard.astype(np.uint64) << np.uint64(40)) ^ row.astype(np.uint64), key)
    batch = np.argsort(words.reshape(size, batches), axis=1)
    position = (np.arange(size)[:, None] + derive_key(key, 4) % size) % size
    at = np.empty((batches, size), np.int64)  # the object at each position of each batch
    at[batch, position] = np.arange(len(row)).reshape(size, batches)
    cell = np.broadcast_to(np.arange(size) // _CELL, at.shape)
    mixed = np.lexsort((keyed_hash(words, derive_key(key, 5))[at], cell), axis=1)
    place = np.empty(len(row), np.int64)
    place[np.take_along_axis(at, mixed, axis=1)] = np.arange(len(row)).reshape(batches, size)
    return place


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """Contiguous positions of a rank in a global batch of `size`; ranks' lengths differ by at most one."""
    return slice(size * rank // world_size, size * (rank + 1) // world_size)


def attacked_mask(position: Int64Array, fraction: float) -> npt.NDArray[np.bool_]:
    """Which positions p of a global batch are attacked: those where floor((p+1) f) > floor(p f).

    The fraction is exact, and its positions are evenly spread. Which objects come to them is drawn anew each
    epoch: see `batch_places`.
    """
    # In units of 2^-32: with f = 0.1 and p = 9 a float product is 0.9999..., whose floor is wrong.
    units = math.ceil(fraction * 2**32)
    return ((position + 1) * units >> 32) > (position * units >> 32)


def split_part(group: Int64Array, validation: float, test: float, seed: int) -> npt.NDArray[np.int8]:
    """Which part each object belongs to, by a hash of (seed, group): 0 training, 1 validation, 2 test.

    An object keeps its part as shards are added, and as the fraction of the other part changes.

    Args:
        group: (N,) int64; objects of one group have one part. By default each object's id.
        validation, test: fractions of all objects; together at most 1.
        seed: of the split.
    """
    word = keyed_hash(group.astype(np.uint64), derive_key(seed, 3))
    part = np.zeros(group.shape, np.int8)
    part[word >= np.uint64(2**64 - 1 - _hash_threshold(test))] = 2 if test else 0
    part[word < np.uint64(_hash_threshold(validation))] = 1
    return part


def _hash_threshold(fraction: float) -> int:
    return min(int(fraction * 2**64), 2**64 - 1)
