"""Reads arrays of a Zarr store, a folder of versions 2 or 3, group by group."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.optional_imports import arrays_extra

_METADATA = ("zarr.json", ".zgroup", ".zarray")


class _StoreArrays(Mapping[str, Any]):
    """Arrays of a store, also those in groups, by their path."""

    def __init__(self, path: Path, group: Any) -> None:
        self._path, self._group = path, group

    def __getitem__(self, name: str) -> Any:
        import zarr

        try:
            found = self._group[name]
        except KeyError:
            raise KeyError(name) from None
        if not isinstance(found, zarr.Array):
            raise BadInput(f"{self._path}: '{name}' is a group, want an array")
        if found.dtype.kind not in "fiubSU":
            raise BadInput(f"{self._path}: '{name}' is of type {found.dtype}: want plain numbers or text")
        return found

    def __iter__(self) -> Iterator[str]:
        import zarr

        return (name for name, one in self._group.members(max_depth=None) if isinstance(one, zarr.Array))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def is_store(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return path.is_dir() and any((path / name).is_file() for name in _METADATA)


def digest(path: Path) -> str:
    """Returns a checksum of the names, sizes and times of a store's files, which changes when one does."""
    found = hashlib.sha256()
    for one in sorted(_files(path)):
        state = one.stat()
        found.update(f"{one.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return found.hexdigest()


@contextmanager
def open_zarr(path: Path) -> Iterator[Mapping[str, Any]]:
    """Opens a store for reading.

    Raises:
        BadInput: it is damaged, a file in it is a link, an array would be unpickled, or there is no zarr.
    """
    with arrays_extra():
        import zarr
    for one in _files(path):
        if one.name in _METADATA and _unpickles(one):
            raise BadInput(f"{one}: holds pickled objects, which are never loaded: save plain arrays")
    try:
        group = zarr.open_group(str(path), mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{path}: not a readable group of Zarr arrays ({reason})") from None
    yield _StoreArrays(path, group)


def _files(path: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(path):
        for name in [*folders, *names]:
            one = Path(folder, name)
            if one.is_symlink():
                raise BadInput(f"{one}: a link: it may lead outside the store: copy the file there")
        yield from (Path(folder, name) for name in names)


def _unpickles(metadata: Path) -> bool:
    """Whether an array's metadata asks for a codec that unpickles."""
    try:
        return "pickle" in json.dumps(json.loads(metadata.read_bytes())).lower()
    except ValueError:
        raise BadInput(f"{metadata}: not JSON: copy it again") from None
