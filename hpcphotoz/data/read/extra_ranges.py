"""Ranges of label columns: for `inspect`, and for the message that no object meets a condition."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import label_columns
from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.progress import track

_ROWS = 1 << 16  # read together
_MAX_TEXTS = 10  # of one column, listed with their counts


def extra_ranges(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """What the extra columns hold, by one scan: JSON-serialisable, in the order of the header.

    Beside the column's name, dtype, unit and shape: the facts of `column_ranges`. A column with a value a
    pixel is not read.

    Raises:
        BadInput: a shard that cannot be read.
    """
    labels = label_columns(manifest.header.extra)
    wanted = {column.name: (column.name, None, np.dtype(column.dtype).kind) for column in labels}
    shards: Iterable[int] = range(len(manifest.shards) if labels else 0)
    if labels:
        shards = track(shards, "reading extra columns (shards)", len(manifest.shards))
    found = column_ranges(ShardFiles(folder, manifest), manifest, wanted, shards)
    return [{**asdict(column), **found.get(column.name, {})} for column in manifest.header.extra]


def column_ranges(
    files: ShardFiles,
    manifest: Manifest,
    wanted: Mapping[str, tuple[str, int | None, str]],
    shards: Iterable[int],
) -> dict[str, dict[str, Any]]:
    """What label columns hold, by one scan.

    Args:
        files, manifest: of the dataset.
        wanted: by any name, the array of a shard, the place of a band (None: all values), and numpy's letter
            of its type: b, S, f, i or u.
        shards: numbers of the shards that are read.

    Returns:
        By those names, of numbers `min` and `max` of the finite values (None: there is none) and the number
        `unknown` of others; of bool the number `true`; of text `values`, the number of objects by text, or
        None beyond ten texts.

    Raises:
        BadInput: a shard that cannot be read.
    """
    ranges = {name: _Range(kind) for name, (_, _, kind) in wanted.items()}
    arrays = {array for array, _, _ in wanted.values()}
    for number in shards:
        rows = manifest.shards[number].rows
        for first in range(0, rows, _ROWS):
            found = files.columns(Blocks.single(number, first, min(_ROWS, rows - first)), arrays)
            for name, (array, band, _) in wanted.items():
                ranges[name].add(found[array] if band is None else found[array][:, band])
    return {name: one.facts() for name, one in ranges.items()}


class _Range:
    """What one column holds, block after block."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._ends: tuple[int | float, int | float] | None = None
        self._count = 0  # of unknown or of true values
        self._texts: Counter[str] = Counter()

    def add(self, values: npt.NDArray[Any]) -> None:
        if self._kind == "b":
            self._count += int(np.count_nonzero(values))
        elif self._kind == "S":
            if len(self._texts) <= _MAX_TEXTS:
                texts, counts = np.unique(values, return_counts=True)
                for text, count in zip(texts.tolist(), counts.tolist(), strict=True):
                    self._texts[text.decode(errors="replace")] += count
        else:
            known = values[np.isfinite(values)] if self._kind == "f" else values.ravel()
            self._count += values.size - known.size
            if known.size:
                ends = [known.min().item(), known.max().item(), *(self._ends or ())]
                self._ends = min(ends), max(ends)

    def facts(self) -> dict[str, Any]:
        if self._kind == "b":
            return {"true": self._count}
        if self._kind == "S":
            return {"values": dict(self._texts) if len(self._texts) <= _MAX_TEXTS else None}
        low, high = self._ends or (None, None)
        return {"min": low, "max": high, "unknown": self._count}
