"""Maps npz and npy files into memory: arrays, and the fields of record arrays as `array/field`."""

import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput

Array = npt.NDArray[Any]
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGE = (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile)


class _MappedArrays(Mapping[str, Any]):
    """Arrays by name, and fields of record arrays by `array/field`; each is mapped when it is first used."""

    def __init__(self, path: Path, names: list[str], map_array: Callable[[str], Array]) -> None:
        self._path, self._names, self._map = path, names, map_array
        self._arrays: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        base, _, field = name.partition("/")
        if base not in self._names:
            raise KeyError(name)
        array = self._array(base)
        if not field:
            return array
        if field not in (array.dtype.names or ()):
            raise KeyError(name)
        return np.asarray(array[field])

    def __iter__(self) -> Iterator[str]:
        for base in self._names:
            fields = self._array(base).dtype.names
            yield from (base,) if fields is None else (f"{base}/{field}" for field in fields)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _array(self, base: str) -> Array:
        if base not in self._arrays:
            with _readable(self._path):
                self._arrays[base] = self._map(base)
        return self._arrays[base]


@contextmanager
def open_npz(path: Path) -> Iterator[Mapping[str, Any]]:
    """Maps the arrays of an npz file where they lie in the file.

    Raises:
        BadInput: the file is not an npz file, or cut; later, an array is compressed or holds pickled objects.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if not names:
        raise BadInput(f"{path}: an archive without npy arrays: want an npz file, as numpy.savez writes")
    yield _MappedArrays(path, names, lambda name: _map_npz_member(path, f"{name}.npy"))


@contextmanager
def open_npy(path: Path) -> Iterator[Mapping[str, Any]]:
    """Maps one npy file, a column of the file's name without its suffix, or a record array of columns.

    Raises:
        BadInput: later, the array is cut or holds pickled objects.
    """
    yield _MappedArrays(path, [path.stem], lambda name: _map_npy(path, 0, None))


@contextmanager
def open_npy_folder(path: Path) -> Iterator[Mapping[str, Any]]:
    """Maps the npy files of a folder, columns of the files' names.

    Raises:
        BadInput: later, an array is cut or holds pickled objects.
    """
    names = sorted(one.stem for one in path.glob("*.npy"))
    yield _MappedArrays(path, names, lambda name: _map_npy(path / f"{name}.npy", 0, None))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        kind = "npz" if path.suffix == ".npz" else "npy"
        raise BadInput(f"{path}: not a readable {kind} file: {' '.join(str(error).split())}") from None


def _map_npz_member(path: Path, name: str) -> Array:
    """Maps an array of an npz file where it lies in the file: np.load would read all 54 GB of it."""
    with zipfile.ZipFile(path) as archive:
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
        if version not in _HEADERS:
            raise ValueError(f"npy version {version}: save it with plain field names")
        # numpy refuses headers above 10 kB, as hostile ones are; one of 64 fields takes 3 kB.
        shape, fortran, dtype = _HEADERS[version](file)
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
