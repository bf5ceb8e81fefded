"""Writes PDFs in the file format that qp and RAIL read, by h5py alone and some thousand rows at a time.

Group `meta` has `pdf_name` and `pdf_version`; group `ancil` arrays of length N. The rest is that of a form:

hist     `meta/bins` (1, n + 1); `data/pdfs` (N, n), the density in each bin, where it is constant
interp   `meta/xvals` (1, n + 2); `data/yvals` (N, n + 2), the density at the centres of the bins, between
         which it is linear, and that of the outermost bins at both ends: its integral is 1, too
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.atomic import atomic_write
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float64]
PdfForm = Literal["hist", "interp"]
FORMS: tuple[PdfForm, ...] = ("hist", "interp")
PDFS = "pdfs"  # of a file of rows: their densities, beside the columns
_COPIED_ROWS = 1 << 14  # at a time


class QpWriter:
    """Writes the qp file; it appears under its name when complete.

    Only errors of this file are reported as "cannot be written", not those of reading or of the network.

    Args:
        out: the file.
        rows: number of objects.
        bins: the redshift bins.
        columns: dtype of each column of `ancil`.
        attributes: of the file.
        form: of the PDFs.
    """

    def __init__(
        self,
        out: Path,
        rows: int,
        bins: RedshiftBins,
        columns: Mapping[str, Any],
        attributes: Mapping[str, Any],
        form: PdfForm = "hist",
    ) -> None:
        edges = bins.edges()
        grid, name = (edges, "bins") if form == "hist" else (_nodes(edges), "xvals")
        self._columns = columns
        self._data = "data/pdfs" if form == "hist" else "data/yvals"
        with writing(out), ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(out))
            self._file = stack.enter_context(h5py.File(temporary, "w"))
            self._file.attrs.update(attributes)
            self._file["meta/pdf_name"] = np.array([form.encode()])
            self._file["meta/pdf_version"] = np.array([0])
            self._file[f"meta/{name}"] = grid[None]
            values = bins.n if form == "hist" else bins.n + 2
            self._file.create_dataset(self._data, (rows, values), np.float32)
            for name, dtype in columns.items():
                self._file.create_dataset(f"ancil/{name}", (rows,), dtype)
            self._out, self._stack = out, stack.pop_all()

    def append_part(self, first: int, part: Path) -> None:
        """Copy the rows of a file of rows, from row `first` on: datasets `PDFS` and those of the columns."""
        with _reading(part), h5py.File(part, "r") as file:
            names = {PDFS: self._data, **{name: f"ancil/{name}" for name in self._columns}}
            for start in range(0, len(file[PDFS]), _COPIED_ROWS):
                found = {name: file[name][start : start + _COPIED_ROWS] for name in names}
                with writing(self._out):
                    for name, values in found.items():
                        self._file[names[name]][first + start : first + start + len(values)] = values

    def read_columns(self, names: Mapping[str, Any]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Read columns that have been written, some thousand rows at a time."""
        rows = len(self._file[self._data])
        for start in range(0, rows, _COPIED_ROWS):
            yield {name: self._file["ancil"][name][start : start + _COPIED_ROWS] for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        with writing(self._out):
            self._stack.__exit__(*error)


def densities(pdf: Floats, bins: RedshiftBins, form: PdfForm) -> npt.NDArray[np.float32]:
    """What a form stores of PDFs (N, n), probability per bin: (N, n) or (N, n + 2)."""
    density = pdf / bins.width
    if form == "interp":
        density = np.concatenate([density[:, :1], density, density[:, -1:]], axis=1)
    return density.astype(np.float32)


def holds_pdfs(path: Path) -> bool:
    """Whether a file is one of qp's."""
    try:
        with h5py.File(path, "r") as file:
            return "meta/pdf_name" in file
    except OSError:
        return False


def _nodes(edges: Floats) -> Floats:
    return np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])


@contextmanager
def _reading(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = " ".join(str(error).split())
        raise BadInput(f"{part}: cannot be read ({said}): all ranks need the same file system") from None


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Context in which an error of HDF5, OSError or RuntimeError, is BadInput, in the system's words.

    HDF5's own message has some 400 characters, such as the address of a buffer.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        said = os.strerror(number) if number else " ".join(str(error).split())
        raise BadInput(f"{out}: cannot be written: {said}") from None
