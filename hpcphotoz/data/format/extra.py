"""Extra columns of a dataset: values of each object that travel with its stamp, beside the fixed columns."""

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, StrictInt, StrictStr

from hpcphotoz.errors import BadInput

Array = npt.NDArray[Any]
FIXED_NAMES = ("images", "z_spec", "ebv", "object_id", "sky_sigma", "ra", "dec", "image_unit", "image_xxh3")
# Name -> the only type of a column with a value a pixel. These are large: they are read only when asked for.
PIXEL_TYPES = {"variance": "float16", "mask": "uint8"}
TYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float32",
    "float64",
)
LONGEST_TEXT = 64  # bytes
MAX_COLUMNS = 500
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TEXT_TYPE = re.compile(r"S([1-9][0-9]?)")
_MAX_UNIT = 100  # characters


@dataclass(frozen=True)
class ExtraColumn:
    """Name, type, unit and shape of an extra column.

    The type is one of TYPES or, for text of at most n bytes, `Sn`. The shape is () for one value an object,
    and (bands,) for one a band. Two columns have a value a pixel: `variance`, (bands, y, x) float16 in
    nanomaggies^2, and `mask`, (bands, ceil(y x / 8)) uint8 as by `pack_mask`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: StrictStr
    dtype: StrictStr
    unit: StrictStr = ""  # as in FITS, such as mag, arcsec, nmgy2
    shape: tuple[StrictInt, ...] = ()  # of an object's value

    @property
    def is_pixels(self) -> bool:
        """Whether it has a value a pixel, and is read only when asked for."""
        return self.name in PIXEL_TYPES

    @property
    def words(self) -> str:
        """Type, shape and unit, for messages: `float32 a band, mag`."""
        per = "" if not self.shape else " a pixel" if self.is_pixels else " a band"
        return f"{self.dtype}{per}{f', {self.unit}' if self.unit else ''}"

    @property
    def stored_type(self) -> np.dtype[Any]:
        """Type in a shard: bool is stored as uint8, 0 or 1."""
        return np.dtype(np.uint8 if self.dtype == "bool" else self.dtype)

    def stored(self, values: Array, rows: int) -> Array:
        """Return the values of `rows` objects as they are stored, contiguous.

        Raises:
            ValueError: another shape or kind of values, or one that the type cannot hold.
        """
        if values.shape != (rows, *self.shape):
            raise ValueError(
                f"{self.name} of shape {values.shape}, but {rows} objects need {(rows, *self.shape)}"
            )
        wanted = np.dtype(self.dtype)
        if values.dtype != wanted:
            kinds = {"f": "fiu"}.get(wanted.kind, wanted.kind if wanted.kind in "bS" else "iu")
            if values.dtype.kind not in kinds:
                raise ValueError(f"{self.name} holds {values.dtype}, but is declared as {self.dtype}")
            with np.errstate(over="ignore"):
                found = values.astype(wanted)
            same = found == values
            if wanted.kind == "f":  # rounding is allowed, an overflow is not
                same = np.isfinite(found) | ~np.isfinite(values)
            if not same.all():
                raise ValueError(
                    f"{self.name} has a value that {self.dtype} cannot hold: declare a wider type"
                )
            values = found
        return np.ascontiguousarray(values).view(self.stored_type)

    def loaded(self, stored: Array) -> Array:
        """Return values read from a shard in the column's own type."""
        return stored != 0 if self.dtype == "bool" else stored


def check_extra(columns: Sequence[ExtraColumn], bands: Sequence[str], stamp: int) -> None:
    """Refuse extra columns that stamps of these bands and of `stamp` pixels a side cannot have.

    Raises:
        BadInput: a wrong name, type or shape, a name that is there twice or that a condition would not find.
    """
    if len(columns) > MAX_COLUMNS:
        raise BadInput(f"{len(columns)} extra columns: at most {MAX_COLUMNS}")
    known = {*FIXED_NAMES, *(f"sky_sigma_{band}" for band in bands)}
    for column in columns:
        if problem := _problem(column, len(bands), stamp):
            raise BadInput(f"extra column '{_shown(column.name)}' {problem}")
        names = {column.name, *condition_names(column, bands)}
        if names & known:
            taken = sorted(names & known)[0]
            raise BadInput(f"extra column '{column.name}': the name '{taken}' is taken: rename the column")
        known |= names


def condition_names(column: ExtraColumn, bands: Sequence[str]) -> tuple[str, ...]:
    """The names under which a condition reads the column, one a band where it has a value a band."""
    if column.is_pixels:
        return ()
    return tuple(f"{column.name}_{band}" for band in bands) if column.shape else (column.name,)


def name_problem(name: str) -> str | None:
    """Why a column cannot have this name, in words; None where it can."""
    if not _NAME.fullmatch(name):
        return "must be named by at most 64 of A-Z a-z 0-9 _, a letter first"
    if name in FIXED_NAMES:
        return "has the name of a column that every shard has"
    if keyword.iskeyword(name):  # a condition is parsed as Python's syntax
        return "has a name that a condition cannot use"
    return None


def label_columns(columns: Iterable[ExtraColumn]) -> tuple[ExtraColumn, ...]:
    """The columns that have no value a pixel."""
    return tuple(column for column in columns if not column.is_pixels)


def stored_columns(
    columns: Sequence[ExtraColumn], values: Mapping[str, Array], rows: int
) -> dict[str, Array]:
    """The values of `rows` objects as they are stored, by name.

    Raises:
        ValueError: a column is missing or is not declared, or as `ExtraColumn.stored`.
    """
    declared = {column.name for column in columns}
    if other := sorted(declared ^ values.keys()):
        lacks = "is missing" if other[0] in declared else "is not declared in the header"
        raise ValueError(f"extra column '{other[0]}' {lacks}")
    return {column.name: column.stored(np.asarray(values[column.name]), rows) for column in columns}


def pack_mask(bad: Array) -> Array:
    """Pack masks (N, band, y, x) bool, true where a pixel is unusable, to (N, band, ceil(y x / 8)) uint8.

    Pixels are in the order of the image, the first in the highest bit, as `numpy.packbits` does it.
    """
    return np.packbits(bad.reshape(*bad.shape[:2], bad.shape[2] * bad.shape[3]), axis=-1)


def unpack_mask(packed: Array, stamp: int) -> Array:
    """Undo `pack_mask`: (N, band, stamp, stamp) bool."""
    bits = np.unpackbits(packed, axis=-1, count=stamp * stamp)
    return bits.reshape(*packed.shape[:2], stamp, stamp).astype(np.bool_)


def variance_column(bands: int, stamp: int) -> ExtraColumn:
    """The column of pixel variances, float16 nanomaggies^2."""
    return ExtraColumn("variance", PIXEL_TYPES["variance"], "nmgy2", (bands, stamp, stamp))


def mask_column(bands: int, stamp: int) -> ExtraColumn:
    """The column of pixel masks, bit-packed."""
    return ExtraColumn("mask", PIXEL_TYPES["mask"], "", (bands, -(-stamp * stamp // 8)))


def _problem(column: ExtraColumn, bands: int, stamp: int) -> str | None:
    if problem := name_problem(column.name):
        return problem
    if len(column.unit) > _MAX_UNIT or not column.unit.isprintable():
        return f"has a unit that is not printable text of at most {_MAX_UNIT} characters"
    if column.is_pixels:
        make = variance_column if column.name == "variance" else mask_column
        wanted = replace(make(bands, stamp), unit=column.unit)
        if column != wanted:
            return f"is {column.dtype}{column.shape}, want {wanted.dtype}{wanted.shape}"
        return None
    text = _TEXT_TYPE.fullmatch(column.dtype)
    if column.dtype not in TYPES and not (text and int(text[1]) <= LONGEST_TEXT):
        return f"is of type {_shown(column.dtype)}: want {', '.join(TYPES)} or S1 to S{LONGEST_TEXT}"
    if column.shape not in ((), (bands,)):
        return f"has shape {column.shape}: want one value an object, or one for each of the {bands} bands"
    return None


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:80]
