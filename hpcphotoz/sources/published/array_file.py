"""Opens HDF5, npz and npy files of published image sets, and reads slices of their rows."""

import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.data import hdf5
from hpcphotoz.errors import BadInput

Array = npt.NDArray[Any]
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayFile:
    """Columns of an open file, arrays or HDF5 datasets, from which slices of rows are read."""

    def __init__(self, path: Path, columns: Mapping[str, Any]) -> None:
        self.path, self._columns = path, columns
        self._opened: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            has = ", ".join(sorted(self._columns)[:20]) or "nothing"
            raise BadInput(f"{self.path}: no field '{name}': it has {has}; is --format right?")
        if name not in self._opened:
            hdf5_file = isinstance(self._columns, h5py.File)
            self._opened[name] = hdf5.checked_array(self._columns, name) if hdf5_file else self._columns[name]
        return self._opened[name]

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def first(self, names: tuple[str, ...], optional: bool = False) -> str | None:
        """Returns the first of these names that the file has; None: it has none.

        Raises:
            BadInput: it has none, and `optional` is false.
        """
        found = next((name for name in names if name in self._columns), None)
        if found is None and not optional:
            _ = self[names[0]]
        return found

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Reads rows `start` to `stop - 1` of a column, one contiguous slab.

        Raises:
            BadInput: they cannot be read, for instance because a chunk is damaged.
        """
        try:
            column = self[name]
            return hdf5.read(column, start, stop) if isinstance(column, h5py.Dataset) else column[start:stop]
        except hdf5.HDF5_ERRORS as error:
            raise BadInput(f"{self.path}: rows {start} to {stop - 1} of '{name}': {error}") from None


@contextmanager
def open_array_file(path: Path, name: str) -> Iterator[ArrayFile]:
    """Opens a file of the layout `name` for the `with` body.

    Raises:
        BadInput: the file is missing, is not HDF5 (or npz, or a folder of npy files), is a compressed npz, or
            holds pickled arrays.
    """
    if name == "pasquet":
        yield ArrayFile(path, _open_pasquet(path))
        return
    try:
        file = hdf5.open_file(path)
    except OSError as error:
        raise BadInput(f"{path}: not a readable HDF5 file ({' '.join(str(error).split())})") from None
    with file:
        yield ArrayFile(path, file)


def _open_pasquet(path: Path) -> dict[str, Any]:
    """Maps `cube` and the fields of `labels` into memory."""
    try:
        if path.is_dir():
            cube, labels = (_map_npy(path / f"{name}.npy", 0, None) for name in ("cube", "labels"))
        else:
            cube, labels = (_map_npz_member(path, f"{name}.npy") for name in ("cube", "labels"))
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: not a readable npz file: {' '.join(str(error).split())}") from None
    if labels.dtype.names is None:
        raise BadInput(f"{path}: 'labels' is {labels.dtype}, not a record array of fields")
    return {**{name: labels[name] for name in labels.dtype.names}, "cube": cube}


def _map_npz_member(path: Path, name: str) -> Array:
    """Maps an array of an npz file where it lies in the file: np.load would read all 54 GB of it."""
    with zipfile.ZipFile(path) as archive:
        if name not in archive.namelist():
            raise BadInput(
                f"{path}: no array '{name.removesuffix('.npy')}': it has {archive.namelist()[:20]}"
            )
        entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise BadInput(
            f"{path}: {name} is compressed and can only be read whole: extract it first with "
            f"`unzip {path.name} -d FOLDER`, and name the folder"
        )
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\3\4":
            raise ValueError(f"no entry at byte {entry.header_offset}: copy it again")
        # The local header's name and extra field may differ in length from those of the directory.
        lengths = struct.unpack("<HH", local[26:30])
    return _map_npy(path, entry.header_offset + 30 + sum(lengths), entry.file_size)


def _map_npy(path: Path, start: int, size: int | None) -> Array:
    """Maps the npy array at byte `start` of a file; `size`: its bytes with the header, if known."""
    with open(path, "rb") as file:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise ValueError(f"npy version {version}: save it with plain field names")
        # numpy refuses headers above 10 kB, as hostile ones are; one of 64 fields takes 3 kB.
        shape, fortran, dtype = _NPY_HEADERS[version](file)
        offset = file.tell()
        held = file.seek(0, os.SEEK_END) - offset
    if dtype.hasobject:
        raise BadInput(f"{path}: holds pickled objects, which are never loaded: save plain arrays")
    needed = math.prod(shape) * dtype.itemsize
    if needed > held or (size is not None and offset - start + needed != size):
        raise ValueError(
            f"{needed} bytes of an array of {dtype}{shape} announced, {held} there: copy it again"
        )
    if not needed:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
