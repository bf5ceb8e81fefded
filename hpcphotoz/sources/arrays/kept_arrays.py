"""Keeps columns of files of image arrays as extra columns of a dataset, with their types and units."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import LONGEST_TEXT, TYPES, ExtraColumn
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.files.array_file import ArrayFile
from hpcphotoz.sources.arrays.image_kind import ImageKind
from hpcphotoz.sources.tables.kept_columns import plain_text

Array = npt.NDArray[Any]
_ROWS = 1 << 16  # of text, read at a time


def describe_kept(
    table: ArrayFile, keep: Mapping[str, str], kind: ImageKind, rows: int, used: int
) -> tuple[ExtraColumn, ...]:
    """Describes the columns of a file that are kept, by the names that they get.

    Numbers and booleans keep their types, but float16 becomes float32. Text becomes bytes in UTF-8 of the
    length of the longest, without spaces at its end: columns of text are read for that.

    Args:
        table: the file.
        keep: the file's name for each column, by the name that it gets.
        kind: of the file's images.
        rows: of the file's images.
        used: rows of text that are read, from the first.

    Raises:
        BadInput: a column is missing, or its shape, type or text cannot be stored.
    """
    return tuple(_describe(table, *names, kind, rows, used) for names in keep.items())


def join_kept(
    known: Sequence[ExtraColumn], found: Sequence[ExtraColumn], first: Path, path: Path
) -> tuple[ExtraColumn, ...]:
    """Describes columns that two files have: the same, but text has the greater length.

    Raises:
        BadInput: types, shapes or units differ; `first` and `path` are the files, for the message.
    """
    joined = []
    for one, other in zip(known, found, strict=True):
        if one.dtype[0] == other.dtype[0] == "S":
            one = replace(one, dtype=max(one.dtype, other.dtype, key=lambda dtype: int(dtype[1:])))
            other = replace(other, dtype=one.dtype)
        if one != other:
            raise BadInput(f"{path}: '{one.name}' is {other.words}, but in {first} {one.words}")
        joined.append(one)
    return tuple(joined)


def read_kept(
    table: ArrayFile, keep: Mapping[str, str], kind: ImageKind, start: int, stop: int
) -> dict[str, Array]:
    """Reads rows `start` to `stop - 1` of the columns that are kept, by the names that they get.

    Of a column with one value a band, the bands are those that are used of the images. Rows that name their
    bands in another order are not used.
    """
    found = {}
    for ours, theirs in keep.items():
        values = table.rows(theirs, start, stop)
        values = kind.choose(values) if values.ndim == 2 else values
        found[ours] = _encoded(values) if values.dtype.kind in "OUST" else values
    return found


def _describe(table: ArrayFile, ours: str, theirs: str, kind: ImageKind, rows: int, used: int) -> ExtraColumn:
    column, bands = table[theirs], kind.stored_bands
    shape, dtype = tuple(int(n) for n in column.shape), np.dtype(column.dtype)
    where = f"{table.path}: '{theirs}' is {dtype}{shape}, and cannot be kept"
    if shape not in ((rows,), (rows, bands)):
        raise BadInput(f"{where}: want one value an object, {(rows,)}, or one a band, {(rows, bands)}")
    if dtype.kind in "OUST":
        if shape[1:]:
            raise BadInput(f"{where}: want one text an object")
        return ExtraColumn(ours, f"S{_longest(table, theirs, used)}", table.unit(theirs))
    name = "float32" if dtype.name == "float16" else dtype.name
    if name not in TYPES:
        raise BadInput(f"{where}: want one of {', '.join(TYPES)} or text")
    return ExtraColumn(ours, name, table.unit(theirs), (len(kind.bands),) if shape[1:] else ())


def _longest(table: ArrayFile, name: str, rows: int) -> int:
    """The length of the longest text of a column, bytes; at least 1."""
    longest = 1
    for start in range(0, rows, _ROWS):
        encoded = _encoded(table.rows(name, start, min(start + _ROWS, rows)))
        longest = max(longest, encoded.dtype.itemsize)
        if longest > LONGEST_TEXT:
            row = start + int(np.argmax(np.char.str_len(encoded)))
            raise BadInput(
                f"{table.path}: row {row}: '{name}' is longer than {LONGEST_TEXT} bytes, which a column of "
                "text can hold"
            )
    return longest


def _encoded(values: Array) -> Array:
    text = [one.encode() for one in plain_text(values)]
    return np.array(text, np.bytes_ if any(text) else "S1")
