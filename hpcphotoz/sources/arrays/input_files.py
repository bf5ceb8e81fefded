"""Opens every input file once before an ingest: images, identifiers, positions and columns to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.array_map import ArrayMap
from hpcphotoz.sources.arrays.files.array_file import ArrayFile, open_array_file, parts_of, source_files
from hpcphotoz.sources.arrays.image_kind import ImageKind, inspect_file
from hpcphotoz.sources.arrays.kept_arrays import describe_kept, join_kept
from hpcphotoz.sources.arrays.row_reader import SourceFile, impossible_positions, read_ids, read_positions
from hpcphotoz.sources.engine.damage import damage_entry

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InputFile:
    """What is known of a file before its images are read."""

    source: SourceFile
    kind: ImageKind
    kept: tuple[ExtraColumn, ...]  # columns to keep
    ids: npt.NDArray[np.int64]  # (N,) of the rows in use
    positions: tuple[Array, Array] | None  # (N,) ra and dec, deg, NaN: unknown; None: not asked for
    impossible: tuple[int, str]  # positions out of range, and the first of them in words
    lacks: Mapping[str, bool]  # whether it lacks E(B-V), masks or inverse variances that the map names


def inspect_files(
    sources: Sequence[Path],
    array_map: ArrayMap,
    keep: Mapping[str, str],
    *,
    limit: int | None,
    positions: bool,
    damaged: str,
) -> tuple[list[InputFile], tuple[ExtraColumn, ...], list[dict[str, Any]]]:
    """Returns the files that have rows, the columns to keep of all of them, and those that are left out.

    Args:
        sources: files or folders, as in `ingest_arrays`.
        array_map: names of the columns.
        keep: the files' name for each column to keep, by the name that it gets.
        limit: number of rows to use, from the first; None: all.
        positions: whether positions are returned too.
        damaged: as in `ingest_arrays`.

    Raises:
        BadInput: there is no row, or a file does not fit the map or the first one, unless it may be left out.
    """
    files: list[InputFile] = []
    extra: tuple[ExtraColumn, ...] = ()
    row = 0
    there, skipped = _present(sources, damaged)
    for path, name in source_files(there) if there else []:
        if row == limit:
            break
        try:
            with open_array_file(path, array_map.bands) as opened:
                left = None if limit is None else limit - row
                one = _inspect(opened, name, array_map, keep, row, left, positions)
            if one is None:
                continue
            if files and one.kind != files[0].kind:
                raise BadInput(f"{path}: {one.kind}, but {files[0].source.path} has {files[0].kind}")
            extra = join_kept(extra, one.kept, files[0].source.path, path) if files else one.kept
        except BadInput as error:
            skipped.append(damage_entry(damaged, name, error))
            continue
        files.append(one)
        row += len(one.ids)
    if not files:
        why = f"; the first: {skipped[0]['reason']}" if skipped else ""
        raise BadInput(f"{', '.join(map(str, sources))}: no object in it{why}")
    return files, extra, skipped


def _inspect(
    opened: ArrayFile,
    name: str,
    array_map: ArrayMap,
    keep: Mapping[str, str],
    row: int,
    limit: int | None,
    positions: bool,
) -> InputFile | None:
    """Inspects a file whose first row has the number `row`; None: it has no rows."""
    kind, stored_rows = inspect_file(opened, array_map)
    rows = stored_rows if limit is None else min(stored_rows, limit)
    if kind is None or not rows:
        return None
    lacks = {"ebv": opened.first(array_map.ebv, "ebv" in array_map.optional) is None}
    for names in (array_map.mask, array_map.inverse_variance):
        if names:
            lacks[names[0]] = opened.first(names, optional=True) is None
    odd, example = impossible_positions(opened, array_map, rows)
    parts = parts_of(opened.path, (*array_map.columns, *keep.values()), array_map.bands)
    return InputFile(
        SourceFile(opened.path, name, *parts, row),
        kind,
        describe_kept(opened, keep, kind, stored_rows, rows),
        read_ids(opened, array_map, 0, rows, row),
        read_positions(opened, array_map, 0, rows) if positions else None,
        (odd, f"{opened.path}: {example}"),
        lacks,
    )


def _present(sources: Sequence[Path], damaged: str) -> tuple[list[Path], list[dict[str, Any]]]:
    """Returns the paths that exist, and entries of `skipped` for others; all of them unless these may be."""
    absent = [path for path in sources if damaged == "skip" and not path.exists()]
    entries = [
        damage_entry(damaged, path.name, BadInput(f"{path}: no such file or folder")) for path in absent
    ]
    return [path for path in sources if path not in absent], entries
