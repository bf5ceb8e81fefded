"""Subsets of a dataset: a part of the split by object id, and a predicate on the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hpcphotoz.config import Data
from hpcphotoz.data import order
from hpcphotoz.data.select.predicate import Predicate

SplitPart = Literal["train", "validation", "test", "all"]
SPLIT_PARTS: tuple[SplitPart, ...] = get_args(SplitPart)
_PART_NUMBERS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Subset:
    """The objects of a part of the split for which the predicate holds."""

    part: SplitPart = "all"
    validation: float = 0.0
    test: float = 0.0
    seed: int = 0
    where: Predicate | None = None

    @classmethod
    def from_options(cls, options: Data, part: SplitPart, bands: Sequence[str]) -> "Subset":
        """The subset that the options describe.

        Raises:
            BadInput: `where` is not a predicate on the labels.
        """
        where = Predicate.parse(options.where, bands) if options.where else None
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
            keep &= part == _PART_NUMBERS[self.part]
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
            words.append(f"at most the first {limit}")
        return f" ({'; '.join(words)})" if words else ""


ALL_OBJECTS = Subset()
