"""Redshifts of objects from a table of their own, and which label values mean that none is known."""

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.identifiers import Ids, identifier, identifiers

Array = npt.NDArray[Any]

_Z_NAMES = ("z_spec", "z")
Z_MAX = 20.0  # a larger one is no redshift
EBV_MAX = 100.0  # mag; a larger one is no E(B-V)
EBV_UNKNOWN = f"E(B-V) is not known: not finite, -1 or below, or above {EBV_MAX:g}"


def nan_if_unknown(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Redshifts or E(B-V), with NaN for the unknown, for which catalogues write -1, -9.999, -99 or -9999."""
    return np.where(values > -1, values, values.dtype.type(np.nan))


@dataclass(frozen=True)
class Redshifts:
    """Known redshifts by object."""

    object_id: Ids  # (N,) ascending, unique
    z: npt.NDArray[np.float32]  # (N,) above -1

    def lookup(self, object_id: Ids) -> npt.NDArray[np.float32]:
        """The redshift of each object, NaN where the table has none, (M,)."""
        if not len(self.z):
            return np.full(len(object_id), np.nan, np.float32)
        place = np.minimum(np.searchsorted(self.object_id, object_id), len(self.z) - 1)
        return np.where(self.object_id[place] == object_id, self.z[place], np.float32(np.nan))


def table_format(path: Path) -> str:
    """What a table is by its first bytes: fits (packed, too), votable or csv.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise BadInput(f"{path}: not a readable table: {error.strerror}") from None
    if head.startswith((b"SIMPLE", b"\x1f\x8b", b"BZh")):
        return "fits"
    return "votable" if b"<VOTABLE" in head or head.lstrip().startswith(b"<?xml") else "csv"


def read_redshifts(path: Path) -> Redshifts:
    """Read a table with columns `object_id` and `z_spec` or, without it, `z`: CSV, FITS or VOTable.

    Raises:
        BadInput: unreadable, a column missing, a value that is no number, an object with two redshifts.
    """
    kind = table_format(path)
    ids, z = _from_csv(path) if kind == "csv" else _from_table(path, kind)
    kept = ~np.isnan(nan_if_unknown(z))
    ids, z = ids[kept], z[kept]
    order = np.argsort(ids, kind="stable")
    ids, z = ids[order], z[order]
    same = np.flatnonzero(np.diff(ids) == 0)
    bad = same[z[same] != z[same + 1]]
    if len(bad):
        raise BadInput(
            f"{path}: object_id {ids[bad[0]]} has redshifts {z[bad[0]]:g} and {z[bad[0] + 1]:g}: keep one"
        )
    once = np.ones(len(ids), np.bool_)
    once[same + 1] = False
    with np.errstate(over="ignore"):
        return Redshifts(ids[once], z[once].astype(np.float32))


def _from_csv(path: Path) -> tuple[Ids, Array]:
    ids, values = [], []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            header = [name.strip() for name in next(reader, [])]
            id_place, z_place = (header.index(name) for name in _names(path, header))
            for line in reader:
                if not line:
                    continue
                where = f"{path}: line {reader.line_num}"
                try:
                    values.append(float(line[z_place].strip() or "nan"))
                    one = line[id_place]
                except (IndexError, ValueError):
                    raise BadInput(f"{where}: no object_id and redshift") from None
                try:
                    ids.append(identifier(one))
                except ValueError as error:
                    raise BadInput(f"{where}: object_id '{one}' {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: not a readable CSV table: {error}") from None
    return np.array(ids, np.int64), np.array(values, np.float64)


def _from_table(path: Path, kind: str) -> tuple[Ids, Array]:
    from hpcphotoz.sources.extra import sources_extra

    with sources_extra():
        from astropy.table import Table
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most services' VOTables deviate from the standard
            table = Table.read(path, format=kind)
    except Exception as error:  # what the parsers raise depends on what is wrong
        raise BadInput(f"{path}: not a readable {kind} table: {' '.join(str(error).split())[:200]}") from None
    id_name, z_name = _names(path, table.colnames)
    try:
        z = np.ma.filled(np.ma.asarray(table[z_name].data, np.float64), np.nan)
    except (TypeError, ValueError):
        raise BadInput(f"{path}: column {z_name} is not of numbers") from None
    ids = table[id_name].data

    def fail(k: int, what: str) -> BadInput:
        return BadInput(f"{path}: row {k + 1}: {id_name} {ids[k]} {what}")

    return identifiers(ids, fail), z


def _names(path: Path, header: list[str]) -> tuple[str, str]:
    z_name = next((name for name in _Z_NAMES if name in header), None)
    if "object_id" not in header or z_name is None:
        raise BadInput(
            f"{path}: needs columns object_id and z_spec or z; it has {', '.join(header) or 'none'}"
        )
    return "object_id", z_name
