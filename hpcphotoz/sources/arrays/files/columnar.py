"""Reads columns of Parquet and Arrow files by groups of rows; images are lists of lists of one length."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.optional_imports import arrays_extra

Array = npt.NDArray[Any]


class _GroupedColumn:
    """One column, read a group of rows at a time; the last group read stays in memory."""

    def __init__(self, sizes: list[int], read_group: Callable[[int], Array]) -> None:
        self._starts, self._read = [0, *accumulate(sizes)], read_group
        self._held: tuple[int, Array] | None = None
        first = next((k for k, size in enumerate(sizes) if size), None)
        sample = np.zeros(0) if first is None else self._group(first)
        self.dtype, self.shape = sample.dtype, (self._starts[-1], *sample.shape[1:])
        self.chunks = (max(sizes, default=1) or 1, *sample.shape[1:])

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        parts = []
        while start < stop:
            group = bisect_right(self._starts, start) - 1
            base, end = self._starts[group], min(self._starts[group + 1], stop)
            part = self._group(group)[start - base : end - base]
            if part.shape[1:] != self.shape[1:]:
                raise ValueError(f"rows of {part.shape[1:]} and of {self.shape[1:]}: want one shape")
            parts.append(part)
            start = end
        if not parts:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _group(self, group: int) -> Array:
        if self._held is None or self._held[0] != group:
            self._held = group, self._read(group)
        return self._held[1]


class _GroupedColumns(Mapping[str, Any]):
    """Columns by name, of a file in groups of rows."""

    def __init__(
        self, path: Path, names: list[str], sizes: list[int], read: Callable[[int, str], Any]
    ) -> None:
        self._path, self._names, self._sizes, self._read = path, names, sizes, read

    def __getitem__(self, name: str) -> _GroupedColumn:
        if name not in self._names:
            raise KeyError(name)
        try:
            return _GroupedColumn(self._sizes, lambda group: _to_numpy(self._read(group, name)))
        except (ValueError, OSError, TypeError) as error:
            raise BadInput(f"{self._path}: column '{name}': {' '.join(str(error).split())}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def open_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    """Opens a Parquet file; a group of rows is in memory at a time.

    Raises:
        BadInput: the file is cut or not Parquet, or pyarrow is not installed.
    """
    with arrays_extra():
        import pyarrow
        from pyarrow import parquet
    try:
        file = parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None
    with file:
        sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
        names = list(file.schema_arrow.names)
        yield _GroupedColumns(
            path, names, sizes, lambda group, name: file.read_row_group(group, columns=[name]).column(0)
        )


@contextmanager
def open_arrow(path: Path) -> Iterator[Mapping[str, Any]]:
    """Maps an Arrow file (Feather, or a stream as Hugging Face datasets writes) into memory.

    Raises:
        BadInput: the file is cut or not Arrow, or pyarrow is not installed.
    """
    with arrays_extra():
        import pyarrow
        from pyarrow import ipc
    try:
        source = pyarrow.memory_map(str(path))
        with open(path, "rb") as file:
            is_file = file.read(6) == b"ARROW1"
        opened = ipc.open_file(source) if is_file else ipc.open_stream(source)
        names = list(opened.schema.names)
        batches = [opened.get_batch(k) for k in range(opened.num_record_batches)] if is_file else list(opened)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a readable Arrow file ({' '.join(str(error).split())})") from None
    with source:
        sizes = [batch.num_rows for batch in batches]
        yield _GroupedColumns(path, names, sizes, lambda group, name: batches[group].column(name))


def _to_numpy(column: Any) -> Array:
    """Converts an Arrow column to an array; lists, which must be of one length, become axes.

    Raises:
        ValueError: lists of different lengths, a type other than numbers and text, or an empty value that is
            no floating-point number.
    """
    import pyarrow
    from pyarrow import types

    values = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    if isinstance(values, pyarrow.ChunkedArray):  # too long for one array
        return np.concatenate([_to_numpy(chunk) for chunk in values.chunks])
    if isinstance(values.type, pyarrow.FixedShapeTensorType):
        return np.asarray(values.to_numpy_ndarray())
    if isinstance(values, pyarrow.ExtensionArray):
        values = values.storage
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    shape = [len(values)]
    while (
        types.is_list(values.type)
        or types.is_large_list(values.type)
        or types.is_fixed_size_list(values.type)
    ):
        inner = values.flatten()
        length = len(inner) // len(values) if len(values) else 0
        lengths = (
            values.value_lengths().unique().to_pylist() if hasattr(values, "value_lengths") else [length]
        )
        if len(values) and (values.null_count or lengths != [length]):
            raise ValueError("has rows of different lengths: want one shape")
        shape.append(length)
        values = inner
    if types.is_string(values.type) or types.is_large_string(values.type) or types.is_binary(values.type):
        return np.array(values.to_pylist(), np.object_).reshape(shape)
    if not (types.is_integer(values.type) or types.is_floating(values.type) or types.is_boolean(values.type)):
        raise ValueError(f"is of type {values.type}: want numbers or text")
    if values.null_count and not types.is_floating(values.type):
        raise ValueError(f"has {values.null_count} empty values: fill them, or leave the rows out")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
