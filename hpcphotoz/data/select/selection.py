"""Row mask of a subset: one bit a row, in memory or in a file that ranks share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from hpcphotoz.atomic import atomic_write
from hpcphotoz.data.order import Blocks
from hpcphotoz.errors import BadInput

Bits = npt.NDArray[np.uint8]


class Selection:
    """Row mask of a dataset, one bit a row (12.5 MB for 1e8 rows); each shard begins at a whole byte.

    Args:
        shard_rows: rows of each shard.
        bits: the bits, the least significant first; None: no row is selected yet.
    """

    def __init__(self, shard_rows: Sequence[int], bits: Bits | None = None) -> None:
        sizes = -(-np.asarray(shard_rows, np.int64) // 8)
        self._first = np.cumsum(sizes) - sizes  # byte of each shard
        self.bits: Bits = np.zeros(int(sizes.sum()), np.uint8) if bits is None else bits
        if len(self.bits) != sizes.sum():
            raise ValueError(f"{len(self.bits)} bytes for shards of {sizes.sum()}")

    def set_rows(self, shard: int, first: int, keep: npt.NDArray[np.bool_]) -> None:
        """Set the rows of a shard from `first`, a multiple of 8, on. Threads may set different shards."""
        start = int(self._first[shard]) + first // 8
        packed = np.packbits(keep, bitorder="little")
        self.bits[start : start + len(packed)] = packed

    def __call__(self, blocks: Blocks) -> npt.NDArray[np.bool_]:
        """Mask of the selected rows of these blocks, block after block."""
        shard, row = blocks.rows()
        byte = self.bits[self._first[shard] + (row >> 3)]
        return (byte >> (row & 7).astype(np.uint8) & 1).astype(np.bool_)

    def write(self, path: Path) -> str:
        """Write the bits, whole or not at all, and return their checksum."""
        with atomic_write(path) as temporary:
            self.bits.tofile(temporary)
        return xxhash.xxh3_64_hexdigest(self.bits.data)

    @classmethod
    def read(cls, path: Path, shard_rows: Sequence[int], xxh3: str) -> "Selection":
        """Map a file that `write` has written into memory: the ranks of a node share its pages.

        Raises:
            BadInput: the file is missing, or does not match the checksum.
        """
        try:
            bits = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInput(
                f"{path}: cannot be read ({reason}): the run folder must lie on a file system of all nodes"
            ) from None
        if xxhash.xxh3_64_hexdigest(bits.data) != xxh3:
            raise BadInput(f"{path}: is not what rank 0 has written: delete it and start again")
        return cls(shard_rows, bits)
