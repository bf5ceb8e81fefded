"""The object table that says where stamps are cut: a CSV file."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput

Floats = npt.NDArray[np.floating[Any]]

RUNS = 1_000_000  # run numbers have six digits: a stamp's object_id is the table's times this plus the run
LARGEST_ID = 2**63 // RUNS - 1


@dataclass(frozen=True)
class Objects:
    """The object table."""

    object_id: npt.NDArray[np.int64]  # (N,)
    ra: Floats  # (N,) deg
    dec: Floats  # (N,) deg
    z_spec: Floats  # (N,) NaN: unknown
    ebv: Floats  # (N,) mag


def read_objects(path: Path) -> Objects:
    """Read the object table; with the columns that `ingest_frames` describes.

    Raises:
        BadInput: unreadable, a column missing, a value that is no number or out of range (named by its line),
            an id twice.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, lines = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: not a readable CSV table: {error}") from None
    names = {
        "object_id": _column(columns, ("object_id",)),
        "ra": _column(columns, ("ra_deg", "ra")),
        "dec": _column(columns, ("dec_deg", "dec")),
    }
    for wanted, name in names.items():
        if name is None:
            also = "" if wanted == "object_id" else f" or {wanted}_deg"
            raise BadInput(f"{path}: no column {wanted}{also}: it has {', '.join(columns) or 'none'}")
    if not lines:
        raise BadInput(f"{path}: lists no object")
    names |= {"z_spec": _column(columns, ("z_spec", "z")), "ebv": _column(columns, ("ebv",))}
    ids = [_identifier(line[names["object_id"]], path, k + 2) for k, line in enumerate(lines)]
    twice = [one for one, times in Counter(ids).items() if times > 1]
    if twice:
        raise BadInput(f"{path}: object_id {twice[0]} is there twice: ids must be unique")
    limits = {"ra": (-360.0, 360.0), "dec": (-90.0, 90.0), "z_spec": (-1.0, 20.0), "ebv": (-1.0, 100.0)}
    missing = {"ra": None, "dec": None, "z_spec": math.nan, "ebv": 0.0}
    values = {
        wanted: np.array(
            [
                _number(x, names[wanted], missing[wanted], limits[wanted], path, k + 2)
                for k, x in enumerate(lines)
            ]
        )
        for wanted in limits
    }
    return Objects(np.array(ids, np.int64), values["ra"], values["dec"], values["z_spec"], values["ebv"])


def _column(columns: Iterable[str], accepted: tuple[str, ...]) -> str | None:
    return next((name for name in accepted if name in columns), None)


def _identifier(text: str | None, path: Path, line: int) -> int:
    try:
        value = int(text or "")
    except ValueError:
        raise BadInput(f"{path}: line {line}: object_id '{text or ''}' is not a whole number") from None
    if not 0 <= value <= LARGEST_ID:
        raise BadInput(f"{path}: line {line}: object_id {value}: must be from 0 to {LARGEST_ID}: renumber")
    return value


def _number(
    line: Mapping[str, str | None],
    name: str | None,
    missing: float | None,
    limits: tuple[float, float],
    path: Path,
    number: int,
) -> float:
    text = (line[name] or "").strip() if name is not None else ""
    if not text and missing is not None:
        return missing
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{path}: line {number}: {name} '{text}' is not a number") from None
    if math.isnan(value) and missing is not None:
        return missing
    if not limits[0] <= value <= limits[1]:
        raise BadInput(f"{path}: line {number}: {name} {text} is not between {limits[0]:g} and {limits[1]:g}")
    return value
