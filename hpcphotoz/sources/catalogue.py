"""The object table that says where stamps are cut: CSV, FITS or VOTable, its columns named by the user."""

import csv
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.extra import sources_extra
from hpcphotoz.sources.identifiers import Ids, identifiers
from hpcphotoz.sources.redshifts import EBV_MAX, Z_MAX, nan_if_unknown, table_format
from hpcphotoz.sources.surveys.fits import open_fits

with sources_extra():
    from astropy import units
    from astropy.io import fits
    from astropy.table import Table
    from astropy.units import UnitsWarning

Floats = npt.NDArray[np.floating[Any]]

RUN_FACTOR = 1_000_000  # run numbers have six digits


@dataclass(frozen=True)
class Catalogue:
    """The object table."""

    object_id: Ids  # (N,) unique
    ra: Floats  # (N,) deg
    dec: Floats  # (N,) deg
    z_spec: Floats  # (N,) NaN: unknown
    ebv: Floats  # (N,) mag, NaN: unknown
    ebv_column: str | None = None  # the table's name for it; None: it has none, and `ebv` is 0

    def __len__(self) -> int:
        return len(self.object_id)

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> "Catalogue":
        names = ("object_id", "ra", "dec", "z_spec", "ebv")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


# The names looked for when none is given; what a missing value becomes (None: it may not be missing); limits.
_NAMES = {
    "object_id": ("object_id",),
    "ra": ("ra_deg", "ra"),
    "dec": ("dec_deg", "dec"),
    "z_spec": ("z_spec", "z"),
    "ebv": ("ebv",),
}
_MISSING = {"ra": None, "dec": None, "z_spec": np.nan, "ebv": np.nan}
_LIMITS = {"ra": (-360.0, 360.0), "dec": (-90.0, 90.0), "z_spec": (-1.0, Z_MAX), "ebv": (-1.0, EBV_MAX)}
_HOURS = ("h", "hr", "hrs")


@dataclass(frozen=True)
class _Column:
    """One column as the file has it, and how to name its rows in a message."""

    path: Path
    name: str
    values: list[str] | npt.NDArray[Any]  # text of a CSV file, or a masked array
    unit: str  # "line" or "row"
    rows: Sequence[int]  # their numbers
    factor: float = 1.0  # deg per unit of the column

    def fail(self, k: int, what: str) -> BadInput:
        value = self.values[k]
        text = "" if value is np.ma.masked else str(value).strip()
        return BadInput(f"{self.path}: {self.unit} {self.rows[k]}: {self.name} {text or '(empty)'} {what}")


def read_catalogue(path: Path, columns: Mapping[str, str] | None = None) -> Catalogue:
    """Read the object table, whole, into memory.

    Args:
        path: CSV, FITS (the first table in it, also packed by gzip or bzip2) or VOTable.
        columns: the file's name for any of object_id, ra, dec (deg), z_spec and ebv (mag); without one,
            `object_id`, `ra_deg` or `ra`, `dec_deg` or `dec`, `z_spec` or `z`, `ebv` are looked for. A
            z_spec or ebv that is empty, masked, NaN or -1 or below is unknown, and NaN. Without a column
            z_spec, all are unknown; without a column ebv, E(B-V) is 0. Ids become int64 by the rule of
            `identifiers.py`. A unit of angle that a FITS file or VOTable gives ra or dec is heeded, for ra
            hours too.

    Raises:
        BadInput: unreadable, a column missing or two that it may be, a unit of ra or dec that is no angle, a
            value that is no number or out of range (named by its line or row), an id twice.
    """
    wanted = dict(columns or {})
    unknown = [key for key in wanted if key not in _NAMES]
    if unknown:
        raise BadInput(f"columns: '{unknown[0]}' is none of {', '.join(_NAMES)}")
    kind = table_format(path)
    found = _read_csv(path, wanted) if kind == "csv" else _read_table(path, wanted, kind == "fits")
    return _validated(path, found)


def epoch_ids(object_id: Ids, run: Ids) -> tuple[Ids, str]:
    """Ids of stamps of the same objects in several runs, and the rule in words.

    `object_id * 1,000,000 + run` where all of these fit 63 bits; otherwise (SDSS's own ids have 19 digits)
    the upper 63 bits of `mix(mix(object_id) + run)`, where mix is the finaliser of SplitMix64 (Steele et al.
    2014, Vigna's constants).

    Args:
        object_id: (N,) of the table, the same object once a run.
        run: (N,)

    Raises:
        BadInput: two stamps would have the same id.
    """
    limit = 2**63 // RUN_FACTOR - 1
    if not len(object_id) or (-limit <= int(object_id.min()) and int(object_id.max()) <= limit):
        ids, rule = object_id * RUN_FACTOR + run, f"table's object_id * {RUN_FACTOR} + run"
    else:
        mixed = _mix(_mix(object_id.astype(np.uint64)) + run.astype(np.uint64))
        ids, rule = (mixed >> np.uint64(1)).astype(np.int64), "mix(mix(table's object_id) + run) >> 1"
        rule += ", mix: SplitMix64's finaliser"
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        a, b = order[same[0]], order[same[0] + 1]
        raise BadInput(
            f"object_id {object_id[a]} in run {run[a]} and {object_id[b]} in run {run[b]} would have one "
            "stamp id: renumber the table's objects"
        )
    return ids, rule


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def _read_csv(path: Path, wanted: Mapping[str, str]) -> dict[str, _Column]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            header = [name.strip() for name in next(reader, [])]
            names = _names(path, header, wanted)
            places = {key: header.index(name) for key, name in names.items()}
            values: dict[str, list[str]] = {key: [] for key in names}
            lines = []
            for line in reader:
                if line:
                    lines.append(reader.line_num)
                    for key, place in places.items():
                        values[key].append(line[place] if place < len(line) else "")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: not a readable CSV table: {error}") from None
    return {key: _Column(path, names[key], values[key], "line", lines) for key in names}


def _read_table(path: Path, wanted: Mapping[str, str], is_fits: bool) -> dict[str, _Column]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnitsWarning)  # units that astropy does not know; ours are documented
        table = _read_fits(path) if is_fits else _read_votable(path)
    names = _names(path, table.colnames, wanted)
    rows = range(1, len(table) + 1)
    columns = {}
    for key, name in names.items():
        factor = _degrees(path, name, table[name].unit, key) if key in ("ra", "dec") else 1.0
        columns[key] = _Column(path, name, table[name].data, "row", rows, factor)
    for column in columns.values():
        if np.ndim(column.values) != 1:
            raise BadInput(f"{path}: column {column.name} holds more than one value a row")
    return columns


def _degrees(path: Path, name: str, unit: Any, key: str) -> float:
    """Degrees in one of a column's units, which many services spell as no standard does."""
    text = str(unit or "deg").strip().lower()
    if text.startswith("deg"):
        return 1.0
    if key == "ra" and (text.startswith("hour") or text in _HOURS):
        return 15.0
    if isinstance(unit, units.UnrecognizedUnit) or not unit.is_equivalent(units.deg):
        raise BadInput(f"{path}: column {name} has the unit {unit}, which is no angle: convert to deg")
    return float(unit.to(units.deg))


def _read_fits(path: Path) -> Any:
    with open_fits(path) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
        if not tables:
            raise BadInput(f"{path}: a FITS file without a table")
        warnings.simplefilter("ignore", UnitsWarning)
        return Table.read(tables[0])


def _read_votable(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most services' VOTables deviate from the standard
            return Table.read(path, format="votable", table_id=0)
    except Exception as error:  # what the XML parser raises depends on what is wrong
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{path}: not a readable VOTable ({reason})") from None


def _names(path: Path, header: list[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The file's name for each column it has."""
    found: dict[str, str] = {}
    has = f"it has {', '.join(header) or 'none'}"
    for key, usual in _NAMES.items():
        if key in wanted:
            if wanted[key] not in header:
                raise BadInput(f"{path}: no column {wanted[key]} for {key}: {has}")
            usual = (wanted[key],)
        there = [name for name in header if name in usual]
        if len(there) > 1:
            raise BadInput(f"{path}: has columns {' and '.join(there)}: {_which_hint(key, there)}")
        if there:
            found[key] = there[0]
        elif _MISSING.get(key) is None:
            either = " or ".join(reversed(usual))
            raise BadInput(f"{path}: no column {either}: {has}; --columns {key}=NAME names another")
    return found


def _which_hint(key: str, names: list[str]) -> str:
    if len(set(names)) < len(names):
        return "rename one"
    return f"say by --columns {key}={names[0]} which is {key}"


def _validated(path: Path, found: Mapping[str, _Column]) -> Catalogue:
    if not len(found["object_id"].values):
        raise BadInput(f"{path}: lists no object")
    ids = _identifiers(found["object_id"])
    numbers = {
        key: _numbers(found[key], missing, _LIMITS[key]) if key in found else np.full(len(ids), missing)
        for key, missing in _MISSING.items()
    }
    ebv_column = found["ebv"].name if "ebv" in found else None
    ebv = np.zeros(len(ids)) if ebv_column is None else numbers["ebv"]
    return Catalogue(ids, numbers["ra"], numbers["dec"], numbers["z_spec"], ebv, ebv_column)


def _identifiers(column: _Column) -> Ids:
    values = column.values
    ids = identifiers(np.array(values, np.object_) if isinstance(values, list) else values, column.fail)
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        raise column.fail(int(order[same[0] + 1]), "is there twice: ids must be unique")
    return ids


def _numbers(column: _Column, missing: float | None, limits: tuple[float, float]) -> Floats:
    values = column.values
    empty = np.array(np.ma.getmaskarray(values)) if isinstance(values, np.ndarray) else np.bool_(False)
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        numbers: Floats = np.array(np.ma.getdata(values), np.float64)
    else:
        text = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]
        empty = empty | np.array([not one.strip() for one in text])
        text = ["0" if blank else one for one, blank in zip(text, empty.tolist(), strict=True)]
        try:
            numbers = np.array(text, np.float64)
        except ValueError:
            raise column.fail(_first_no_number(text), "is not a number") from None
    if missing is None and empty.any():
        raise column.fail(int(np.argmax(empty)), "is not a number")
    if missing is not None:
        numbers[empty] = missing
        numbers = nan_if_unknown(numbers)
    low, high = (limit / column.factor for limit in limits)
    allowed = (numbers >= low) & (numbers <= high) | (np.isnan(numbers) & (missing is not None))
    if not allowed.all():
        raise column.fail(int(np.argmin(allowed)), f"is not between {low:g} and {high:g}")
    return numbers * column.factor


def _first_no_number(text: list[str]) -> int:
    for k, one in enumerate(text):
        try:
            np.array([one], np.float64)
        except ValueError:
            return k
    return 0
