"""Reads tables of objects into astropy tables: CSV, FITS and VOTable. Errors name the line or row."""

import csv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.identifiers import Ids, identifiers
from hpcphotoz.sources.optional_imports import sources_extra

Floats = npt.NDArray[np.floating[Any]]

_HOURS = ("h", "hr", "hrs")


@dataclass(frozen=True)
class TableFile:
    """A table in memory, and the file that it was read from. All values of a CSV file are text."""

    path: Path
    kind: str  # "csv", "fits" or "votable"
    names: list[str]  # of the columns, as the file has them: two may be equal
    table: Any  # astropy.table.Table, with the columns in the order of `names`

    def column(self, name: str) -> "Column":
        """Returns the first column of that name.

        Raises:
            BadInput: it holds more than one value a row.
        """
        column = self.table.columns[self.names.index(name)]
        if np.ndim(column.data) != 1:
            raise BadInput(f"{self.path}: column {name} holds more than one value a row")
        return Column(self, name, column.data, column.unit)


@dataclass(frozen=True)
class Column:
    """One column of a table: checks its values, and names the line or row of a bad one."""

    file: TableFile
    name: str
    values: npt.NDArray[Any]  # (N,), may be masked
    unit: Any  # astropy unit, or None

    def fail(self, k: int, problem: str) -> BadInput:
        """Returns the error for value `k`; `problem` ends its message."""
        place = f"line {_line_of_row(self.file.path, k)}" if self.file.kind == "csv" else f"row {k + 1}"
        value = self.values[k]
        text = "" if value is np.ma.masked else str(value).strip()
        return BadInput(f"{self.file.path}: {place}: {self.name} {text or '(empty)'} {problem}")

    def identifiers(self) -> Ids:
        """Returns the values as int64 identifiers (N,), by the rule of `identifiers.py`.

        Raises:
            BadInput: an identifier is absent or may have lost digits.
        """
        return identifiers(self.values, self.fail)

    def numbers(self, empty: float | None = None) -> Floats:
        """Returns the values as float64 (N,).

        Args:
            empty: what stands for an empty or masked value; None: such a value is an error.

        Raises:
            BadInput: a value is not a number.
        """
        absent = np.array(np.ma.getmaskarray(self.values))
        if self.values.dtype.kind in "fiu":
            numbers: Floats = np.array(np.ma.getdata(self.values), np.float64)
        else:
            text = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in self.values]
            absent |= np.array([not one.strip() for one in text], np.bool_)
            text = ["0" if blank else one for one, blank in zip(text, absent.tolist(), strict=True)]
            try:
                numbers = np.array(text, np.float64)
            except ValueError:
                raise self.fail(_first_no_number(text), "is not a number") from None
        if empty is None and absent.any():
            raise self.fail(int(np.argmax(absent)), "is not a number")
        numbers[absent] = np.nan if empty is None else empty
        return numbers

    def degrees_per_unit(self, hours: bool) -> float:
        """Returns the number of degrees in one of the column's units; a column without a unit is in degrees.

        With `hours`, the unit may be hours, as of a right ascension.

        Raises:
            BadInput: the unit is no angle.
        """
        from astropy import units

        text = str(self.unit or "deg").strip().lower()
        if text.startswith("deg"):  # many services spell units as no standard does
            return 1.0
        if hours and (text.startswith("hour") or text in _HOURS):
            return 15.0
        if isinstance(self.unit, units.UnrecognizedUnit) or not self.unit.is_equivalent(units.deg):
            raise BadInput(
                f"{self.file.path}: column {self.name} has the unit {self.unit}, which is no angle: "
                "convert to deg"
            )
        return float(self.unit.to(units.deg))


def read_table(path: Path) -> TableFile:
    """Reads a table whole into memory: CSV, or the first table of a FITS file (also packed) or VOTable.

    Raises:
        BadInput: the file is missing or not readable, or astropy is not installed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise BadInput(f"{path}: not a readable table: {error.strerror}") from None
    if head.startswith((b"SIMPLE", b"\x1f\x8b", b"BZh")):
        return _read_fits(path)
    if b"<VOTABLE" in head or head.lstrip().startswith(b"<?xml"):
        return _read_votable(path)
    return _read_csv(path)


def _read_csv(path: Path) -> TableFile:
    with sources_extra():
        from astropy.io import ascii
        from astropy.table import Table
    try:
        _, header = next(_csv_rows(path), (0, []))
        if not header:
            return TableFile(path, "csv", [], Table())
        # Text columns: a guessed type would turn the identifier 007 into 7 and round those of 20 digits.
        # No guess of the format: only commas separate, and a line that begins with # is a row.
        text = {"*": [ascii.convert_numpy(str)]}
        table = ascii.read(
            str(path), format="csv", guess=False, encoding="utf-8-sig", fill_values=[], converters=text
        )
    except ascii.InconsistentTableError:
        raise BadInput(f"{path}: {_overlong_row(path, len(header))}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: not a readable CSV table: {error}") from None
    return TableFile(path, "csv", [name.strip() for name in header], table)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields each row of a CSV file that is not blank, the header first, and the number of its line."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield reader.line_num, row


def _overlong_row(path: Path, columns: int) -> str:
    for line, row in _csv_rows(path):
        if len(row) > columns:
            return f"line {line} has {len(row)} values, but the header names {columns} columns"
    return f"not a readable CSV table: not every row has {columns} values"


def _line_of_row(path: Path, k: int) -> int:
    # Read again, since astropy keeps no line numbers: this happens only on an error.
    return next(islice(_csv_rows(path), k + 1, None))[0]


def _read_fits(path: Path) -> TableFile:
    with sources_extra():
        from astropy.io import fits
        from astropy.table import Table
        from astropy.units import UnitsWarning

    from hpcphotoz.sources.surveys.fits import open_fits

    with open_fits(path) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
        if not tables:
            raise BadInput(f"{path}: a FITS file without a table")
        warnings.simplefilter("ignore", UnitsWarning)  # `degrees_per_unit` handles units unknown to astropy
        table = Table.read(tables[0])
    return TableFile(path, "fits", table.colnames, table)


def _read_votable(path: Path) -> TableFile:
    with sources_extra():
        from astropy.table import Table
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most services' VOTables deviate from the standard
            table = Table.read(path, format="votable", table_id=0)
    except Exception as error:  # what the XML parser raises depends on what is wrong
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{path}: not a readable VOTable ({reason})") from None
    return TableFile(path, "votable", table.colnames, table)


def _first_no_number(text: list[str]) -> int:
    for k, one in enumerate(text):
        try:
            np.array([one], np.float64)
        except ValueError:
            return k
    return 0
