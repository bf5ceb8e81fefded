"""Subsets of a dataset (a part of the split, a predicate on the labels), and their row masks."""

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
from hpcphotoz.data.select.groups import PLACED, SplitGroups
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
    groups: SplitGroups | None = None  # what the split keeps together; None: objects of one id

    @classmethod
    def from_options(
        cls,
        options: Data,
        part: SplitPart,
        bands: Sequence[str],
        extra: Sequence[ExtraColumn] = (),
        where: str = "",
    ) -> "Subset":
        """The subset that the options describe, of a dataset with these bands and extra columns.

        With `where`, a second predicate, of the objects that meet both.

        Raises:
            BadInput: `options.where` or `where` is not a predicate on the labels, or the split is by a column
                that there is not.
        """
        texts = [text for text in (options.where, where) if text]
        text = " and ".join(f"({one})" for one in texts) if len(texts) > 1 else "".join(texts)
        predicate = Predicate.parse(text, bands, extra) if text else None
        groups = SplitGroups.parse(options.split_by, extra) if part != "all" else None
        return cls(part, options.validation, options.test, options.split_seed, predicate, groups)

    @property
    def is_split(self) -> bool:
        """Whether the split leaves out any object."""
        return self.part != "all" and bool(self.validation or self.test or self.part != "train")

    @property
    def columns(self) -> frozenset[str]:
        """Labels on which the subset depends; empty: all objects are selected."""
        names = frozenset() if self.where is None else self.where.columns
        if not self.is_split:
            return names
        return names | (self.groups.columns if self.groups else {"object_id"})

    def __call__(self, columns: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
        """Mask of the selected rows, (N,) bool, from label columns of shape (N, ...).

        Raises:
            BadInput: as `Predicate`, or the position of an object, by which the split assigns it, is unknown.
        """
        keep, part, _ = self.assign(columns)
        if self.groups and (unplaced := int((part < 0).sum())):
            raise BadInput(self.unplaced_message(unplaced, len(part)))
        return self.of_part(keep, part)

    def of_part(self, keep: npt.NDArray[np.bool_], part: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
        """Mask of the selected rows, from the mask and the parts that `assign` returned."""
        if self.is_split:
            keep[keep] = part == SPLIT_PARTS.index(self.part)
        return keep

    def assign(
        self, columns: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int8], npt.NDArray[np.int64]]:
        """Which rows meet the predicate, and where the split puts those, from label columns (N, ...).

        Returns:
            Mask of the rows that meet the predicate, (N,) bool; the part of each of these M, (M,) int8, by
            its place in SPLIT_PARTS, -1: of unknown position; and the groups of those with a part, int64.
        """
        n = len(next(iter(columns.values())))
        keep = np.ones(n, np.bool_) if self.where is None else self.where(columns)
        part = np.zeros(np.count_nonzero(keep), np.int8)
        if not self.is_split:
            return keep, part, np.zeros(0, np.int64)
        names = self.groups.columns if self.groups else {"object_id"}
        found = {name: columns[name] if self.where is None else columns[name][keep] for name in names}
        if self.groups is None:
            group = found["object_id"]
        else:
            unknown = self.groups.unknown(found)
            if unknown.any():
                part[unknown] = -1
                found = {name: values[~unknown] for name, values in found.items()}
            group = self.groups(found)
        part[part == 0] = order.split_part(group, self.validation, self.test, self.seed)
        return keep, part, group

    def unplaced_message(self, unplaced: int, of: int) -> str:
        """The refusal of a split by position of objects of which some have none."""
        by = self.groups.text if self.groups else ""
        mend = (
            f"leave them out by the condition '{PLACED}'" if unplaced < of else "ingest them with ra and dec"
        )
        return (
            f"{unplaced} of {of} objects have no position on the sky, by which data.split_by {by} would put "
            f"them into a part: {mend}, or split by a column"
        )

    def record(self) -> dict[str, Any]:
        """The subset as JSON for provenance: `part`, `where` ("": all) and, unless all parts, the `split`."""
        record: dict[str, Any] = {"part": self.part, "where": self.where.text if self.where else ""}
        if self.part != "all":
            record["split"] = {"validation": self.validation, "test": self.test, "seed": self.seed}
            if self.groups:
                record["split"]["by"] = self.groups.text
        return record

    def text(self, limit: int | None = None) -> str:
        """The subset as text in parentheses after a space, for messages; empty if it is the whole dataset."""
        words = []
        if self.part != "all":
            fractions = f"{self.validation:g} validation, {self.test:g} test"
            by = f" by {self.groups.text}" if self.groups else ""
            words.append(f"{self.part} part of a split{by} into {fractions}, seed {self.seed}")
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
            temporary.write_bytes(self.bits.data)  # `tofile` says neither what failed nor, at its end, that
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
