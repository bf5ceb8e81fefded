"""Catalogues of objects and tables of redshifts: which columns they need, and which values mean unknown."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.order import splitmix64
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.identifiers import Ids
from hpcphotoz.sources.table_files import Column, Floats, read_columns
from hpcphotoz.sources.tables.kept_columns import check_kept_names, kept_columns

Z_MAX = 20.0  # a larger value is no redshift
EBV_MAX = 100.0  # mag; a larger value is no E(B-V)
EBV_UNKNOWN = f"E(B-V) is not known: not finite, -1 or below, or above {EBV_MAX:g}"
_KEPT = "keep "  # before the names of columns to keep
RUN_FACTOR = 1_000_000  # run numbers have six digits

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


@dataclass(frozen=True)
class Catalogue:
    """Objects to cut out of frames."""

    object_id: Ids  # (N,) unique
    ra: Floats  # (N,) deg
    dec: Floats  # (N,) deg
    z_spec: Floats  # (N,) NaN: unknown
    ebv: Floats  # (N,) mag, NaN: unknown
    ebv_column: str | None = None  # the file's name for it; None: it has no such column, and `ebv` is 0
    extra_columns: tuple[ExtraColumn, ...] = ()
    extra: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # (N,) by name

    def __len__(self) -> int:
        return len(self.object_id)

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> "Catalogue":
        extra = {name: values[rows] for name, values in self.extra.items()}
        return replace(self, **{name: getattr(self, name)[rows] for name in _NAMES}, extra=extra)


@dataclass(frozen=True)
class Redshifts:
    """Known redshifts of objects."""

    object_id: Ids  # (N,) ascending, unique
    z: npt.NDArray[np.float32]  # (N,) above -1

    def lookup(self, object_id: Ids) -> npt.NDArray[np.float32]:
        """Returns the redshift of each object (M,), NaN where the table has none."""
        if not len(self.z):
            return np.full(len(object_id), np.nan, np.float32)
        place = np.minimum(np.searchsorted(self.object_id, object_id), len(self.z) - 1)
        return np.where(self.object_id[place] == object_id, self.z[place], np.float32(np.nan))


def nan_if_unknown(values: Floats) -> Floats:
    """Replaces redshifts or E(B-V) that mean unknown by NaN: catalogues write -1, -9.999, -99 or -9999."""
    return np.where(values > -1, values, values.dtype.type(np.nan))


def nan_if_unknown_ebv(values: Floats) -> Floats:
    """Replaces an unknown E(B-V) by NaN: in every source it is known above -1 and up to EBV_MAX, mag."""
    known = nan_if_unknown(values)
    return np.where(known <= EBV_MAX, known, values.dtype.type(np.nan))


def read_catalogue(
    path: Path, columns: Mapping[str, str] | None = None, keep: Mapping[str, str] | None = None
) -> Catalogue:
    """Reads the object table, whole, into memory.

    Args:
        path: CSV, FITS (the first table in it, also packed by gzip or bzip2) or VOTable.
        columns: the file's name for any of object_id, ra, dec (deg), z_spec and ebv (mag); without one,
            `object_id`, `ra_deg` or `ra`, `dec_deg` or `dec`, `z_spec` or `z`, `ebv` are looked for. A
            z_spec or ebv that is empty, masked, NaN or -1 or below, or an ebv above EBV_MAX, is unknown, and
            NaN. Without a column
            z_spec, all are unknown; without a column ebv, E(B-V) is 0. Ids become int64 by the rule of
            `identifiers.py`. If a FITS file or VOTable gives ra or dec another unit of angle, or ra in
            hours, the values are converted.
        keep: the file's name for each column that becomes an extra column, by the name that it gets there.

    Raises:
        BadInput: unreadable, a column missing or two that it may be, a unit of ra or dec that is no angle, a
            value that is no number or out of range (named by its line or row), an id twice, or as
            `kept_columns`.
    """
    wanted, kept = dict(columns or {}), dict(keep or {})
    check_kept_names(kept)
    unknown = [key for key in wanted if key not in _NAMES]
    if unknown:
        z = ": write z_spec=" + wanted["z"] if unknown[0] == "z" else ""
        raise BadInput(f"columns: '{unknown[0]}' is none of {', '.join(_NAMES)}{z}")
    found = read_columns(path, lambda names: _column_names(path, names, wanted, kept))
    if not len(found["object_id"].values):
        raise BadInput(f"{path}: lists no object")
    ids = found["object_id"].identifiers()
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        raise found["object_id"].fail(int(order[same[0] + 1]), "is there twice: ids must be unique")
    numbers = {
        key: _numbers(found[key], key) if key in found else np.full(len(ids), missing)
        for key, missing in _MISSING.items()
    }
    ebv_column = found["ebv"].name if "ebv" in found else None
    ebv = np.zeros(len(ids)) if ebv_column is None else numbers["ebv"]
    extra = kept_columns({name: found[_KEPT + name] for name in kept})
    return Catalogue(ids, numbers["ra"], numbers["dec"], numbers["z_spec"], ebv, ebv_column, *extra)


def read_redshifts(path: Path) -> Redshifts:
    """Reads a table with columns `object_id` and `z_spec` or, without it, `z`: CSV, FITS or VOTable.

    Raises:
        BadInput: unreadable, a column missing, a value that is no number, an object with two redshifts.
    """

    def choose(names: list[str]) -> dict[str, str]:
        z_name = next((name for name in _NAMES["z_spec"] if name in names), None)
        if "object_id" not in names or z_name is None:
            has = ", ".join(names) or "none"
            raise BadInput(f"{path}: needs columns object_id and z_spec or z; it has {has}")
        return {"object_id": "object_id", "z_spec": z_name}

    columns = read_columns(path, choose)
    ids, z = columns["object_id"].identifiers(), nan_if_unknown(columns["z_spec"].numbers(np.nan))
    order = np.argsort(ids, kind="stable")
    order = order[~np.isnan(z[order])]
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


def epoch_ids(object_id: Ids, run: Ids) -> tuple[Ids, str]:
    """Returns ids (N,) of stamps of the same objects (N,) in several runs (N,), and the rule in words.

    `object_id * 1,000,000 + run` where all of these fit 63 bits; otherwise (SDSS's own ids have 19 digits)
    the upper 63 bits of `mix(mix(object_id) + run)`, where mix is the finaliser of SplitMix64 (Steele et al.
    2014, Vigna's constants).

    Raises:
        BadInput: two stamps would have the same id.
    """
    limit = 2**63 // RUN_FACTOR - 1
    if not len(object_id) or (-limit <= int(object_id.min()) and int(object_id.max()) <= limit):
        ids, rule = object_id * RUN_FACTOR + run, f"table's object_id * {RUN_FACTOR} + run"
    else:
        mixed = splitmix64(splitmix64(object_id.astype(np.uint64)) + run.astype(np.uint64))
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


def _column_names(
    path: Path, names: list[str], wanted: Mapping[str, str], kept: Mapping[str, str]
) -> dict[str, str]:
    """Returns the file's name for each column that it has; the keys of those to keep begin with _KEPT."""
    found: dict[str, str] = {}
    has = f"it has {', '.join(names) or 'none'}"
    for key, usual in _NAMES.items():
        if key in wanted:
            if wanted[key] not in names:
                raise BadInput(f"{path}: no column {wanted[key]} for {key}: {has}")
            usual = (wanted[key],)
        there = [name for name in names if name in usual]
        if len(there) > 1:
            which = f"say by --columns {key}={there[0]} which is {key}"
            hint = "rename one" if len(set(there)) < len(there) else which
            raise BadInput(f"{path}: has columns {' and '.join(there)}: {hint}")
        alike = next((name for name in names if name.lower() in usual and name not in wanted.values()), None)
        if there:
            found[key] = there[0]
        elif _MISSING.get(key) is None:
            either = " or ".join(reversed(usual))
            another = f"--columns {key}={alike or 'NAME'} names another"
            raise BadInput(f"{path}: no column {either}: {has}; {another}")
        elif alike:  # may be something else: Z is a magnitude, too
            print(
                f"{path}: column {alike} is not read: if it is {key}, say --columns {key}={alike}",
                file=sys.stderr,
            )
    for ours, theirs in kept.items():
        if names.count(theirs) != 1:
            raise BadInput(
                f"{path}: {'two columns' if theirs in names else 'no column'} {theirs} to keep: {has}"
            )
        found[_KEPT + ours] = theirs
    return found


def _numbers(column: Column, key: str) -> Floats:
    """Returns a column's values, in degrees if `key` is ra or dec, with NaN for unknown ones."""
    missing, factor = _MISSING[key], 1.0
    if key in ("ra", "dec"):
        factor = column.degrees_per_unit(hours=key == "ra")
    numbers = column.numbers(missing)
    if missing is not None:
        numbers = nan_if_unknown_ebv(numbers) if key == "ebv" else nan_if_unknown(numbers)
    low, high = (limit / factor for limit in _LIMITS[key])
    allowed = (numbers >= low) & (numbers <= high) | (np.isnan(numbers) & (missing is not None))
    if not allowed.all():
        raise column.fail(int(np.argmin(allowed)), f"is not between {low:g} and {high:g}")
    return numbers * factor
