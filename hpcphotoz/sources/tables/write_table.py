"""Writes a table of numbers chunk by chunk, as FITS, Parquet or CSV by the suffix of the file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.optional_imports import arrays_extra, sources_extra

SUFFIXES = (".fits", ".parquet", ".csv")
_FITS_BLOCK = 2880  # bytes, of which the parts of a FITS file are multiples
Chunk = Mapping[str, npt.NDArray[Any]]


class TableWriter(Protocol):
    """Appends rows to a table that is being written."""

    def write(self, rows: Chunk) -> None:
        """Append rows: arrays (n,) of all columns, by name."""


def check_table_name(path: Path) -> None:
    """Refuse a suffix that says no form of table, or whose library is not installed.

    Raises:
        BadInput: either.
    """
    if path.suffix not in SUFFIXES:
        raise BadInput(f"{path}: the suffix says the form of a table: name it *{' or *'.join(SUFFIXES)}")
    if path.suffix == ".fits":
        with sources_extra():
            import astropy.io.fits  # noqa: F401
    elif path.suffix == ".parquet":
        with arrays_extra():
            import pyarrow.parquet  # noqa: F401


@contextmanager
def writing_table(
    path: Path, suffix: str, columns: Mapping[str, Any], units: Mapping[str, str], rows: int
) -> Iterator[TableWriter]:
    """Context manager that writes a table; at its end the file is complete.

    Args:
        path: the file, which may be an empty one.
        suffix: the form: one of `SUFFIXES`.
        columns: dtype of each column, in their order; integers of 1 or 8 bytes, or floats.
        units: of some of the columns, as FITS and Parquet tell them.
        rows: number of rows that will be written.
    """
    dtype = np.dtype(list(columns.items()))
    if suffix == ".parquet":
        with _parquet(path, dtype, units) as writer:
            yield writer
        return
    with open(path, "wb") as file:
        if suffix == ".csv":
            yield _CsvWriter(file, dtype)
            return
        fits = _FitsWriter(file, dtype, units, rows)
        yield fits
        file.write(bytes(-file.tell() % _FITS_BLOCK))


class _CsvWriter:
    def __init__(self, file: IO[bytes], dtype: np.dtype[Any]) -> None:
        self._file, self._names = file, dtype.names or ()
        file.write((",".join(self._names) + "\n").encode())

    def write(self, rows: Chunk) -> None:
        # numpy's text of a number is the shortest that is read back as the same number of its type.
        cells = [rows[name].astype(str).tolist() for name in self._names]
        self._file.write("".join(f"{','.join(row)}\n" for row in zip(*cells, strict=True)).encode())


class _FitsWriter:
    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], units: Mapping[str, str], rows: int) -> None:
        from astropy.io import fits

        table = fits.BinTableHDU(np.zeros(0, dtype), name="POINTS")
        for number, name in enumerate(dtype.names or (), 1):
            if name in units:
                table.header.set(f"TUNIT{number}", units[name], after=f"TFORM{number}")
        table.header["NAXIS2"] = rows
        for header in (fits.PrimaryHDU().header, table.header):
            file.write(header.tostring().encode("ascii"))  # padded to whole blocks
        self._file, self._dtype = file, dtype.newbyteorder(">")

    def write(self, rows: Chunk) -> None:
        found = np.empty(len(next(iter(rows.values()))), self._dtype)
        for name in self._dtype.names or ():
            found[name] = rows[name]
        self._file.write(found.tobytes())


@contextmanager
def _parquet(path: Path, dtype: np.dtype[Any], units: Mapping[str, str]) -> Iterator[TableWriter]:
    import pyarrow
    from pyarrow import parquet

    names = dtype.names or ()
    schema = pyarrow.schema(
        [
            pyarrow.field(
                name,
                pyarrow.from_numpy_dtype(dtype[name]),
                metadata={"unit": units[name]} if name in units else None,
            )
            for name in names
        ]
    )

    class ParquetWriter:
        def write(self, rows: Chunk) -> None:
            arrays = [
                pyarrow.array(rows[name], field.type) for name, field in zip(names, schema, strict=True)
            ]
            file.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))

    with parquet.ParquetWriter(path, schema) as file:
        yield ParquetWriter()
