"""Reads columns of tables of objects: CSV, FITS and VOTable. Errors name the line or row."""

import csv
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.identifiers import Ids, identifiers
from hpcphotoz.sources.optional_imports import sources_extra

Floats = npt.NDArray[np.floating[Any]]
# From the names of a file's columns, of which two may be equal: those to read, by keys of the caller's.
ChooseColumns = Callable[[list[str]], Mapping[str, str]]

_HOURS = ("h", "hr", "hrs")


@dataclass(frozen=True)
class Column:
    """One column of a table: checks its values, and names the line or row of a bad one."""

    path: Path
    name: str  # as the file has it
    values: npt.NDArray[Any]  # (N,), may be masked; Python strings if the file is CSV
    unit: Any  # astropy unit, or None
    lines: Sequence[int] | None  # of the rows in a CSV file; None: the file is FITS or VOTable

    def fail(self, k: int, problem: str) -> BadInput:
        """Returns the error for value `k`; `problem` ends its message."""
        place = f"row {k + 1}" if self.lines is None else f"line {self.lines[k]}"
        value = self.values[k]
        text = "" if value is np.ma.masked else str(value).strip()
        return BadInput(f"{self.path}: {place}: {self.name} {text or '(empty)'} {problem}")

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
        text = str(self.unit or "deg").strip().lower()
        if text.startswith("deg"):  # many services spell units as no standard does
            return 1.0
        if hours and (text.startswith("hour") or text in _HOURS):
            return 15.0
        from astropy import units

        if isinstance(self.unit, units.UnrecognizedUnit) or not self.unit.is_equivalent(units.deg):
            raise BadInput(
                f"{self.path}: column {self.name} has the unit {self.unit}, which is no angle: convert to deg"
            )
        return float(self.unit.to(units.deg))


def read_columns(path: Path, choose: ChooseColumns) -> dict[str, Column]:
    """Reads columns into memory: of a CSV file, or the first table of a FITS file (also packed) or VOTable.

    The result has the keys of what `choose` returns.

    Raises:
        BadInput: the file is missing or not readable, a row of a CSV file ends before a column that is read
            or is longer than the header, or astropy, which FITS and VOTable need, is not installed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise BadInput(f"{path}: not a readable table: {error.strerror}") from None
    if head.startswith((b"SIMPLE", b"\x1f\x8b", b"BZh")):
        table = _read_fits(path)
    elif b"<VOTABLE" in head or head.lstrip().startswith(b"<?xml"):
        table = _read_votable(path)
    else:
        return _read_csv(path, choose)
    chosen = choose(table.colnames)
    for name in chosen.values():
        if np.ndim(table[name].data) != 1:
            raise BadInput(f"{path}: column {name} holds more than one value a row")
    return {key: Column(path, name, table[name].data, table[name].unit, None) for key, name in chosen.items()}


def _read_csv(path: Path, choose: ChooseColumns) -> dict[str, Column]:
    rows = _csv_rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    chosen = choose(header)
    # By name: the place of the column, and its cells. A list of rows would keep the garbage collector busy.
    cells = {name: (header.index(name), list[str]()) for name in chosen.values()}
    lines = []
    for line, row in rows:
        if len(row) != len(header):
            if any(cell.strip() for cell in row[len(header) :]):
                problem = f"has {len(row)} values, but the header names {len(header)} columns"
                raise BadInput(f"{path}: line {line} {problem}")
            for name, (place, _) in cells.items():
                if place >= len(row):
                    raise BadInput(f"{path}: line {line} ends before column {name}")
        for place, column in cells.values():
            column.append(row[place])
        lines.append(line)
    # Objects, not numpy's own text: that makes each cell as wide as the longest, and cuts NULs at the end.
    values = {name: np.array(column, np.object_) for name, (_, column) in cells.items()}
    return {key: Column(path, name, values[name], None, lines) for key, name in chosen.items()}


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields each row of a CSV file that is not blank, the header first, and the number of its last line."""
    begin = 1
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            # Strict: otherwise one stray quote swallows the rows up to the next, or the rest of the file.
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            for row in reader:
                if len(row) > 1 or "".join(row).strip():
                    yield reader.line_num, row
                begin = reader.line_num + 1
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a readable CSV table: {error}") from None
    except csv.Error as error:
        where = f"in the row that begins at line {begin}: is a quote stray there?"
        raise BadInput(f"{path}: not a readable CSV table: {error} {where}") from None


def _read_fits(path: Path) -> Any:
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
        return Table.read(tables[0])


def _read_votable(path: Path) -> Any:
    with sources_extra():
        from astropy.table import Table
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most services' VOTables deviate from the standard
            return Table.read(path, format="votable", table_id=0)
    except Exception as error:  # what the XML parser raises depends on what is wrong
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{path}: not a readable VOTable ({reason})") from None


def _first_no_number(text: list[str]) -> int:
    for k, one in enumerate(text):
        try:
            np.array([one], np.float64)
        except ValueError:
            return k
    return 0
