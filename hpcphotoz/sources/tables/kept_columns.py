"""Converts columns of tables of objects to extra columns of a dataset, with their types and units."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import LONGEST_TEXT, TYPES, ExtraColumn, name_problem
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.table_files import Column

Array = npt.NDArray[Any]
_TRUE, _FALSE = ("true", "t"), ("false", "f")


def kept_columns(columns: Mapping[str, Column]) -> tuple[tuple[ExtraColumn, ...], dict[str, Array]]:
    """Converts columns of a table, by the names that they get; returns their descriptions and values (N,).

    Numbers and booleans of a FITS file or VOTable keep their types. A column of a CSV file holds whole
    numbers, floats or booleans (true, false) if all its cells that are not empty do, else text. Text becomes
    bytes in UTF-8 of the length of the longest, without spaces at its end. An unknown value is NaN in a
    column of floats and empty in one of text; other types have no place for it.

    Raises:
        BadInput: a type that cannot be stored, or an unknown whole number or boolean; names its line or row.
    """
    made = {name: _kept_column(name, column) for name, column in columns.items()}
    extra = tuple(column for column, _ in made.values())
    return extra, {name: values for name, (_, values) in made.items()}


def check_kept_names(names: Mapping[str, str]) -> None:
    """Refuses names that extra columns cannot have, before a file is read.

    Raises:
        BadInput: says which, and how to give another name.
    """
    for ours, theirs in names.items():
        if problem := name_problem(ours):
            raise BadInput(f"--keep {theirs}: '{ours}' {problem}: give another, as in --keep NAME={theirs}")


def plain_text(values: Array) -> list[str]:
    """Returns texts, (N,) bytes, str or Python objects, without spaces at their ends; None becomes empty."""
    text = (
        "" if one is None else one.decode(errors="replace") if isinstance(one, bytes) else str(one)
        for one in values.tolist()
    )
    return [one.rstrip() for one in text]


def _kept_column(name: str, column: Column) -> tuple[ExtraColumn, Array]:
    values, absent = np.ma.getdata(column.values), np.array(np.ma.getmaskarray(column.values))
    if values.dtype.kind in "OUS":
        text = ["" if gone else one for one, gone in zip(plain_text(values), absent.tolist(), strict=True)]
        values, absent = _parsed(text, column.lines is not None), np.array([not one for one in text])
    if values.dtype.kind in "iub" and absent.any():
        kind = "boolean" if values.dtype.kind == "b" else "whole number"
        raise column.fail(int(np.argmax(absent)), f"is unknown, for which a {kind} has no place: fill it")
    if values.dtype.kind == "f":
        values = np.where(absent, values.dtype.type(np.nan), values) if absent.any() else values
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    dtype = values.dtype.str[1:] if values.dtype.kind == "S" else values.dtype.name
    if values.dtype.kind == "S" and values.dtype.itemsize > LONGEST_TEXT:
        longest = int(np.argmax(np.char.str_len(values)))
        raise column.fail(longest, f"is longer than {LONGEST_TEXT} bytes, which a column of text can hold")
    if values.dtype.kind != "S" and dtype not in TYPES:
        raise BadInput(f"{column.path}: column {column.name} is of type {dtype}: it cannot be kept")
    return ExtraColumn(name, dtype, str(column.unit or "")), values


def _parsed(text: list[str], guess: bool) -> Array:
    """Numbers or booleans where `guess` and all texts that are not empty are such; else text as bytes."""
    guess &= any(text) and not any("_" in one for one in text)  # Python reads 1_000 as a number
    readers: tuple[tuple[Callable[[str], Any], Any, type], ...] = (
        (int, 0, np.int64),
        (float, np.nan, np.float64),
        (_boolean, False, np.bool_),
    )
    for read, empty, dtype in readers if guess else ():
        try:
            return np.array([read(one) if one else empty for one in text], dtype)
        except (ValueError, OverflowError):
            continue
    return np.array([one.encode() for one in text], np.bytes_ if any(text) else "S1")


def _boolean(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError
    return text.lower() in _TRUE
