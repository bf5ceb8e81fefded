"""Selects objects by a condition on their labels, such as `z_spec < 0.3 and sky_sigma_r < 0.03`.

A condition has Python's syntax and numpy's meaning, object by object: comparisons (also chained), `and`,
`or`, `not`, `+ - * / %`, numbers, parentheses and the functions abs, isfinite, log10 and sqrt, on
z_spec, ebv, object_id, ra, dec, sky_sigma_<band> and the dataset's extra columns, which are NAME, or
NAME_<band> where they have one value a band. In particular:

- A comparison with NaN is false, except `!=`: `z_spec < 0.3` leaves out unknown redshifts and
  `not z_spec >= 0.3` keeps them. `isfinite(z_spec)` asks for known ones.
- Numbers are rounded to the type of the column beside them: `z_spec <= 0.3` keeps a float32 0.3.
- A real number divided by a column that is zero somewhere is infinite or NaN there.
- object_id is a whole number, exact to 64 bits: it combines with whole numbers only, until it is divided.
  So is an extra column of an integer type; of uint64, values of 2^63 and more are refused.
- An extra column of type bool is a condition by itself. One of text is compared with text in quotes, by == or
  !=, such as `spectype == 'GALAXY'`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.select.predicate_parser import INT64, Column, Node, Number, Operation, Parser, refuse

Array = npt.NDArray[Any]
# Judged in float64, whose rounding is below 2^-50 of the figure: the last 8192 numbers are refused too.
_WHOLE = INT64 * (1 - 2.0**-50)


@dataclass(frozen=True)
class Predicate:
    """Boolean filter over label columns."""

    text: str
    bands: tuple[str, ...]
    columns: frozenset[str] = field(compare=False)  # the columns that the condition reads
    names: tuple[str, ...] = field(compare=False, repr=False)  # that it may use, for messages
    _root: Node = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, bands: Sequence[str], extra: Sequence[ExtraColumn] = ()) -> "Predicate":
        """Parse a condition of at most `MAX_LENGTH` characters; it is never executed as Python.

        The bands are in the order of the second axis of `sky_sigma`; `extra` are the extra columns.

        Raises:
            BadInput: not a condition on the labels; says why, at which character (from 1), and the names.
        """
        parser = Parser(text, bands, extra)
        root = parser.node(parser.tree(), 0)
        if root.kind != "truth":
            parser.refuse("is a number, not a condition: compare it with something", 1)
        if not parser.columns:
            parser.refuse("asks nothing of an object: name a label", 1)
        return cls(text, tuple(bands), frozenset(parser.columns), parser.names, root)

    def labels(self) -> dict[str, tuple[str, int | None, str]]:
        """What it reads, by the names in the text: array, place of the band, numpy's letter of the type."""
        letters = {"truth": "b", "whole": "i", "text": "S", "real": "f"}
        return {
            f"{one.name}_{self.bands[one.band]}" if one.band is not None else one.name: (
                one.name,
                one.band,
                letters[one.kind],
            )
            for one in _columns(self._root)
        }

    def __call__(self, columns: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
        """Mask of the selected rows, (N,) bool.

        `columns` are at least `self.columns`, as a shard holds them: (N,), and sky_sigma (N, B) in nMgy.

        Raises:
            BadInput: whole numbers leave 64 bits, or are divided by zero.
        """
        with np.errstate(all="ignore"):
            found: npt.NDArray[np.bool_] = self._value(self._root, columns)
        return found

    def _value(self, node: Node, columns: Mapping[str, Array]) -> Any:
        if isinstance(node, Number):
            return node.value
        if isinstance(node, Column):
            return self._column(node, columns[node.name])
        values = [self._value(operand, columns) for operand in node.operands]
        if node.kind == "whole":
            # numpy wraps int64 around and gives x % 0 = 0, both silently: wrong objects would be selected.
            if node.symbol == "%" and np.any(np.equal(values[1], 0)):
                refuse(self.text, self.names, "divides a whole number by zero", node.at)
            about = node.function(*(np.asarray(value, np.float64) for value in values))
            if node.symbol != "%" and np.any(np.abs(about) >= _WHOLE):
                refuse(
                    self.text, self.names, f"'{node.symbol}' leaves the 64 bits of a whole number", node.at
                )
        return reduce(node.function, values) if len(values) > 2 else node.function(*values)

    def _column(self, node: Column, values: Array) -> Array:
        found: Array = values if node.band is None else values[:, node.band]
        if node.kind == "truth":
            return found.astype(np.bool_)
        if node.kind != "whole" or found.dtype == np.int64:
            return found
        # To 64 bits: numpy would wrap narrower types around, or refuse a literal beside them.
        if found.dtype == np.uint64 and np.any(found >= INT64):
            what = (
                f"reads '{node.name}', which has a value of 2^63 or more: beyond a condition's whole numbers"
            )
            refuse(self.text, self.names, what, node.at)
        return found.astype(np.int64)


def _columns(node: Node) -> Iterator[Column]:
    if isinstance(node, Column):
        yield node
    if isinstance(node, Operation):
        for operand in node.operands:
            yield from _columns(operand)
