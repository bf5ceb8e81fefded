"""Opens files of arrays and tables of any kind, and reads slices of their rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.data import hdf5
from hpcphotoz.errors import BadInput, nearest
from hpcphotoz.sources.arrays.files import columnar, fits_table, npy, zarr_store

Array = npt.NDArray[Any]
Columns = Mapping[str, Any]  # by name: arrays with shape and dtype, of which slices of rows are read
_LISTED = 20  # names that a message lists
_MAGIC = {
    b"\x93NUMPY": "npy",
    b"PK": "npz",
    b"SIMPLE  ": "fits",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream without a file's footer, as Hugging Face datasets writes
}
# What is taken from a folder: the files of the first of these kinds that it has.
_SUFFIXES = ((".hdf5", ".h5"), (".npz",), (".parquet",), (".arrow", ".feather"), (".fits", ".fit"))
BAND = "{band}"  # in the name of columns that hold one band each
KINDS = "HDF5, npz, npy, FITS table, Parquet, Arrow, Zarr"


@dataclass(frozen=True)
class _BandColumns:
    """Columns (N, ...) that hold one band each, read as one array (N, band, ...)."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None  # of the first


class ArrayFile:
    """Columns of an open file, from which slices of rows are read.

    A name with BAND in it stands for a column of each of `bands`, which are read as one (N, band, ...).
    """

    def __init__(self, path: Path, columns: Columns, bands: Sequence[str] = ()) -> None:
        self.path, self._columns, self._bands = path, columns, bands
        self._opened: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._opened:
            if (names := names_of(name, self._bands)) != (name,):
                return self._opened.setdefault(name, self._of_bands(names))
            if name not in self._columns:
                has = ", ".join(sorted(self._columns)[:_LISTED]) or "nothing"
                near = nearest(name, self._columns)
                raise BadInput(f"{self.path}: no field '{name}': it has {has}; is the map right?{near}")
            self._opened[name] = self._columns[name]
        return self._opened[name]

    def _of_bands(self, names: tuple[str, ...]) -> _BandColumns:
        first, *others = (self[name] for name in names)
        shape, dtype = tuple(int(n) for n in first.shape), np.dtype(first.dtype)
        for name, one in zip(names[1:], others, strict=True):
            if tuple(one.shape) != shape or one.dtype != dtype:
                raise BadInput(
                    f"{self.path}: '{name}' is {one.dtype}{tuple(one.shape)}, but '{names[0]}' "
                    f"{dtype}{shape}: bands must be of one type and shape"
                )
        chunks = getattr(first, "chunks", None)
        return _BandColumns(names, (*shape[:1], len(names), *shape[1:]), dtype, chunks)

    def __contains__(self, name: str) -> bool:
        return any(one in self._columns for one in names_of(name, self._bands))

    def names(self) -> list[str]:
        """Returns the names of all columns, sorted."""
        return sorted(self._columns)

    def attribute(self, name: str, column: str = "") -> tuple[str, ...] | float | None:
        """Returns an attribute of an HDF5 file, or its column: a number or texts; None: it has none."""
        if not isinstance(self._columns, _HDF5Columns):
            return None
        owner = self[column] if column else self._columns.file
        try:
            found = np.asarray(hdf5.attribute(owner, name))
            if found.size == 1 and found.dtype.kind in "fiu":
                return float(f"{found.reshape(())[()]:.6g}")  # 0.262 in float32 is 0.2619999945
            return hdf5.text_attribute(owner, name)
        except BadInput:
            return None

    def unit(self, name: str) -> str:
        """Returns the unit of a column of HDF5, its attribute `unit`, or of a FITS table; "": it has none."""
        name = names_of(name, self._bands)[0]
        if isinstance(self._columns, fits_table.TableColumns):
            return self._columns.unit(name)
        found = self.attribute("unit", name)
        return " ".join(found) if isinstance(found, tuple) else ""

    def first(self, names: tuple[str, ...], optional: bool = False) -> str | None:
        """Returns the first of these names that the file has; None: it has none, or none is given.

        Raises:
            BadInput: it has none, and `optional` is false.
        """
        found = next((name for name in names if name in self), None)
        if found is None and names and not optional:
            _ = self[names[0]]
        return found

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Reads rows `start` to `stop - 1` of a column, one contiguous slab.

        Raises:
            BadInput: they cannot be read, for instance because a chunk is damaged.
        """
        try:
            column = self[name]
            if isinstance(column, _BandColumns):
                return np.stack([self.rows(one, start, stop) for one in column.names], axis=1)
            if isinstance(column, h5py.Dataset):
                return hdf5.read(column, start, stop)
            return np.asarray(column[start:stop])
        except hdf5.HDF5_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(f"{self.path}: rows {start} to {stop - 1} of '{name}': {reason}") from None


class _HDF5Columns(Mapping[str, Any]):
    """Arrays of an HDF5 file, also those in groups, by their path; only hard links are followed."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file

    def __getitem__(self, name: str) -> h5py.Dataset:
        if name not in self.file:
            raise KeyError(name)
        parts = name.strip("/").split("/")
        for k in range(1, len(parts)):
            group = "/".join(parts[:k])
            if not isinstance(self.file.get(group, getlink=True), h5py.HardLink):
                raise BadInput(f"{self.file.filename}: '{group}' is a link to a group: copy the group there")
        return hdf5.checked_array(self.file, name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.file

    def __iter__(self) -> Iterator[str]:
        found: list[str] = []
        self.file.visititems(
            lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
        )
        return iter(found)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@contextmanager
def open_array_file(path: Path, bands: Sequence[str] = ()) -> Iterator[ArrayFile]:
    """Opens a file, or a folder of npy files or of Zarr, of the kind that its first bytes tell.

    `bands`: those that BAND in the name of a column stands for.

    Raises:
        BadInput: the file is missing, cannot be read, holds pickled objects, or its library is not installed.
    """
    openers: dict[str, Callable[[Path], AbstractContextManager[Columns]]] = {
        "hdf5": _open_hdf5,
        "npz": npy.open_npz,
        "npy": npy.open_npy,
        "npy folder": npy.open_npy_folder,
        "fits": fits_table.open_fits_table,
        "parquet": columnar.open_parquet,
        "arrow": columnar.open_arrow,
        "zarr": zarr_store.open_zarr,
    }
    with openers[_kind(path)](path) as columns:
        yield ArrayFile(path, columns, bands)


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Columns]:
    try:
        file = hdf5.open_file(path)
    except OSError as error:
        reason = " ".join(str(error).split())
        if "signature" in reason:
            reason = f"no file signature): want {KINDS}, unpacked"
        else:
            reason += ")"
        raise BadInput(f"{path}: not a readable HDF5 file ({reason}") from None
    with file:
        yield _HDF5Columns(file)


def _kind(path: Path) -> str:
    if path.is_dir():
        if not zarr_store.is_store(path) and not any(path.glob("*.npy")):
            raise BadInput(f"{path}: a folder without npy files or Zarr: name one file in it")
        return "zarr" if zarr_store.is_store(path) else "npy folder"
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "hdf5")
    # A file cut to nothing has no first bytes: its name tells what it should be.
    return "npz" if found == "hdf5" and path.suffix == ".npz" else found


def names_of(name: str, bands: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the columns that a name stands for: of every band if BAND is in it."""
    return tuple(name.replace(BAND, band) for band in bands) if bands and BAND in name else (name,)


def source_files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Returns every file to read once, in the order of the resolved paths, and its name in the provenance.

    A folder that holds npy files, or is a Zarr store, is one file; any other is searched at any depth.

    Raises:
        BadInput: a path is missing, or a folder holds no file of arrays.
    """
    found: dict[Path, str] = {}
    for path in paths:
        if not path.exists():
            raise BadInput(f"{path}: no such file or folder")
        if path.is_file() or zarr_store.is_store(path) or any(path.glob("*.npy")):
            found.setdefault(path.resolve(), path.name)
            continue
        below = [one for one in path.rglob("*") if one.is_file()]
        for suffixes in _SUFFIXES:
            chosen = [one for one in below if one.suffix.lower() in suffixes]
            if chosen:
                break
        else:
            chosen = [one for one in path.rglob("*.zarr") if zarr_store.is_store(one)]
        if not chosen:
            raise BadInput(f"{path}: no file of arrays in it ({KINDS})")
        for one in chosen:
            found.setdefault(one.resolve(), one.relative_to(path).as_posix())
    return sorted(found.items())


def parts_of(path: Path, columns: Sequence[str], bands: Sequence[str]) -> tuple[tuple[Path, ...], str]:
    """Returns the files whose sizes and times tell whether columns changed; for a Zarr store, a digest."""
    if path.is_file():
        return (path,), ""
    if zarr_store.is_store(path):
        return (), zarr_store.digest(path)
    names = sorted({one.partition("/")[0] for name in columns for one in names_of(name, bands)})
    return tuple(one for name in names if (one := path / f"{name}.npy").is_file()), ""
