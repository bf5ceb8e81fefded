"""Subsets of a dataset (a part of the split by object id, a predicate on the labels), and their row masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xxhash

from hpcphotoz.atomic import atomic_write
from hpcphotoz.config import Data
from hpcphotoz.data import order
from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.errors import BadInput

__all__ = ["Subset"]
Bits = npt.NDArray[np.uint8]
SplitPart = Literal["train", "validation", "test", "all"]
SPLIT_PARTS: tuple[SplitPart, ...] = get_args(SplitPart)


@dataclass(frozen=True)
class Subset:
    """The objects of a part of the split for which the predicate holds."""

    part: SplitPart = "all"
    validation: float = 0.0
    test: float = 0.0
    seed: int = 0
    where: Predicate | None = None

    @classmethod
    def from_options(
        cls, options: Data, part: SplitPart, bands: Sequence[str], extra: Sequence[ExtraColumn] = ()
    ) -> "Subset":
        """The subset that the options describe, of a dataset with these bands and extra columns.

        Raises:
            BadInput: `where` is not a predicate on the labels.
        """
        where = Predicate.parse(options.where, bands, extra) if options.where else None
        return cls(part, options.validation, options.test, options.split_seed, where)

    @property
    def columns(self) -> frozenset[str]:
        """Labels on which the subset depends; empty: all objects are selected."""
        names = frozenset() if self.where is None else self.where.columns
        split = self.part != "all" and (self.validation or self.test or self.part != "train")
        return names | {"object_id"} if split else names

    def __call__(self, columns: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
        """Mask of the selected rows, (N,) bool, from label columns of shape (N, ...)."""
        keep = np.ones(len(next(iter(columns.values()))), np.bool_)
        if self.part != "all" and "object_id" in self.columns:
            part = order.split_part(columns["object_id"], self.validation, self.test, self.seed)
            keep &= part == SPLIT_PARTS.index(self.part)
        return keep if self.where is None else keep & self.where(columns)

    def record(self) -> dict[str, Any]:
        """The subset as JSON for provenance: `part`, `where` ("": all) and, unless all parts, the `split`."""
        record: dict[str, Any] = {"part": self.part, "where": self.where.text if self.where else ""}
        if self.part != "all":
            record["split"] = {"validation": self.validation, "test": self.test, "seed": self.seed}
        return record

    def text(self, limit: int | None = None) -> str:
        """The subset as text in parentheses after a space, for messages; empty if it is the whole dataset."""
        words = []
        if self.part != "all":
            fractions = f"{self.validation:g} validation, {self.test:g} test"
            words.append(f"{self.part} part of a split into {fractions}, seed {self.seed}")
        if self.where:
            words.append(f"where {' '.join(self.where.text.split())}")
        if limit:
            words.append(f"the first {limit}")
        return f" ({'; '.join(words)})" if words else ""


ALL_OBJECTS = Subset()


class Selection:
    """Row mask of a dataset, one bit a row (12.5 MB for 1e8 rows); each shard begins at a whole byte.

    The least significant of its `bits` comes first; None: no row is selected yet.
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

    def __call__(self, blocks: order.Blocks) -> npt.NDArray[np.bool_]:
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
