"""Groups of objects that a split keeps together: pixels of the sky, or equal values of a column."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.select.healpix import nested_pixel
from hpcphotoz.errors import BadInput, nearest

Array = npt.NDArray[Any]
PLACED = "isfinite(ra) and abs(dec) <= 90"  # the condition that an object has a position
MANY_GROUPS = 1000  # counted exactly up to here
_MAX_NAMES = 40  # listed in a message
_TEXT = re.compile(r"S[0-9]+")


@dataclass(frozen=True)
class SplitGroups:
    """Gives each object the 64-bit word of its group; see `config.Data.split_by`."""

    text: str
    columns: frozenset[str]  # labels that decide the group
    nside: int | None = None  # of HEALPix; None: by values of the column
    truth: bool = False  # the column holds booleans: all values but 0 are one group

    @classmethod
    def parse(cls, text: str, extra: Sequence[ExtraColumn] = ()) -> "SplitGroups | None":
        """The groups that `data.split_by` describes, in a dataset with these extra columns; None: by id.

        Raises:
            BadInput: there is no such column, or its values do not name groups.
        """
        if not text:
            return None
        if text.startswith("healpix:"):
            return cls(text, frozenset({"ra", "dec"}), int(text.partition(":")[2]))
        possible = {"object_id": "int64"} | {c.name: c.dtype for c in extra if not c.shape and _is_label(c)}
        if text not in possible:
            can = f"possible are healpix:NSIDE, {', '.join(list(possible)[:_MAX_NAMES])}"
            if found := [column for column in extra if column.name == text]:
                each = " a band" if found[0].shape else ""
                what = f"holds {found[0].dtype}{each}, want whole numbers, booleans or text, one an object"
            else:
                what = f"is no column that names groups{nearest(text, possible)}"
            raise BadInput(f"data.split_by: '{text}' {what}: {can}")
        return cls(text, frozenset({text}), truth=possible[text] == "bool")

    def unknown(self, columns: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
        """Mask of the objects that have no group: those of unknown position, (N,) bool."""
        if self.nside is None:
            return np.zeros(len(next(iter(columns.values()))), np.bool_)
        return ~has_position(columns["ra"], columns["dec"])

    def __call__(self, columns: Mapping[str, Array]) -> npt.NDArray[np.int64]:
        """The word of each object's group, (N,) int64: the pixel, the whole number, or a hash of the text.

        `columns` are at least `self.columns`, as a shard holds them, with known positions.
        """
        if self.nside is not None:
            return nested_pixel(columns["ra"], columns["dec"], self.nside)
        values = columns[self.text]
        if values.dtype.kind != "S":
            return (values != 0 if self.truth else values).astype(np.uint64).view(np.int64)
        # numpy has no zero bytes at the end of a text: the word does not depend on the column's width.
        texts, place = np.unique(values, return_inverse=True)
        words = np.array([xxhash.xxh3_64_intdigest(text) for text in texts.tolist()], np.uint64)
        return words.view(np.int64)[place]


@dataclass(frozen=True)
class SplitShares:
    """Number of objects that meet the predicate, in each part of a split by groups."""

    training: int = 0
    validation: int = 0
    test: int = 0
    unplaced: int = 0  # objects of unknown position, which have no group
    groups: int = 0  # beyond MANY_GROUPS not counted

    def __add__(self, other: "SplitShares") -> "SplitShares":
        return SplitShares(*(a + b for a, b in zip(self._counts, other._counts, strict=True)))

    @property
    def _counts(self) -> tuple[int, ...]:
        return self.training, self.validation, self.test, self.unplaced

    def text(self) -> str:
        """The numbers in words: the groups, and the objects of each part."""
        more = f"more than {MANY_GROUPS}" if self.groups > MANY_GROUPS else str(self.groups)
        groups = f"{more} group{'' if self.groups == 1 else 's'}"
        return f"{groups}: training {self.training}, validation {self.validation}, test {self.test} objects"

    def problem(self, validation: float, test: float) -> str | None:
        """The numbers, if a part's share is off by more than half of the fraction asked for; else None."""
        total = self.training + self.validation + self.test
        asked = {"training": 1 - validation - test, "validation": validation, "test": test}
        wrong = [
            f"{name} {getattr(self, name) / total:.1%} instead of {fraction:.1%}"
            for name, fraction in asked.items()
            if total and abs(getattr(self, name) / total - fraction) > fraction / 2
        ]
        return f"{self.text()} ({', '.join(wrong)})" if wrong else None


def has_position(ra: Array, dec: Array) -> npt.NDArray[np.bool_]:
    """Which objects have a position on the sky, (N,) bool: ra (deg) finite and dec from -90 to 90."""
    return np.isfinite(ra) & (np.abs(dec) <= 90)


def _is_label(column: ExtraColumn) -> bool:
    return column.dtype == "bool" or "int" in column.dtype or bool(_TEXT.fullmatch(column.dtype))
