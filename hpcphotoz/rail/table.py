"""A dataset as a RAIL table: columns by name, and chunks of rows for this rank, read when asked for."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import label_columns
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.read.shard_files import ShardFiles

Array = npt.NDArray[Any]
Chunk = dict[str, Array]


def dataset_folder(path: str | Path) -> Path | None:
    """The folder of a dataset, of which `path` is the folder or the manifest; None: it is neither.

    Environment variables in the path are replaced, as RAIL's handles do.
    """
    path = Path(os.path.expandvars(path))
    if path.name == MANIFEST:
        return path.parent
    return path if path.is_dir() else None


class ImageTable(Mapping[str, Array]):
    """Images and labels of a dataset by column name. Nothing is read before it is asked for.

    Its extra columns are there too, except those with a value a pixel.

    Args:
        folder: the dataset.

    Raises:
        BadInput: no finished dataset, or a shard is missing.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._extra = {column.name: column for column in label_columns(self.manifest.header.extra)}

    @property
    def rows(self) -> int:
        """Number of objects."""
        return self.manifest.rows

    @property
    def extra(self) -> list[str]:
        """Names of the extra columns."""
        return list(self._extra)

    def __iter__(self) -> Iterator[str]:
        return iter((*COLUMNS, *self._extra))

    def __len__(self) -> int:
        return len(COLUMNS) + len(self._extra)

    def __getitem__(self, name: str) -> Array:
        """One column of all objects; "images" takes the memory of all of them."""
        if name not in {*self}:
            raise KeyError(name)
        if name != "images":
            return np.concatenate([part[name] for _, _, part in self.labels([name])])
        return np.concatenate([part.images for part in read_rows(self.folder, self.manifest)])

    def chunks(self, chunk_size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[int, int, Chunk]]:
        """Yield first row, end and columns of every `ranks`-th chunk, after comparing checksums.

        The dictionary of columns is emptied before the next chunk is read, so that one is in memory at a
        time; RAIL's own iterator fills one dictionary again and again.

        Args:
            chunk_size: rows of a chunk; the last one may be smaller.
            rank: which chunks: number `rank`, `rank` + `ranks`, ...
            ranks: number of ranks.

        Raises:
            BadInput: a shard is damaged or does not match the manifest.
        """
        for start in range(rank * chunk_size, self.rows, ranks * chunk_size):
            end = min(start + chunk_size, self.rows)
            parts = list(read_rows(self.folder, self.manifest, end - start, rows=range(start, end)))
            stamps = parts[0] if len(parts) == 1 else Stamps.concatenate(parts)
            chunk = {**{name: getattr(stamps, name) for name in COLUMNS}, **stamps.extra}
            del parts, stamps
            yield start, end, chunk
            chunk.clear()

    def labels(self, names: list[str]) -> Iterator[tuple[int, int, Chunk]]:
        """Yield first row, end and some columns of each shard; no image is read.

        Args:
            names: columns other than "images".

        Raises:
            BadInput: a shard cannot be read, or its labels have changed since it was written.
        """
        files, start = ShardFiles(self.folder, self.manifest), 0
        for number, shard in enumerate(self.manifest.shards):
            found = files.columns(Blocks.single(number, 0, shard.rows), names, verify=True)
            loaded = {name: self._extra[name].loaded(found[name]) for name in names if name in self._extra}
            yield start, start + shard.rows, {**found, **loaded}
            start += shard.rows
