"""Divides the rows of files among the shards of a dataset."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hpcphotoz.sources.arrays.row_reader import RowRange, SourceFile
from hpcphotoz.sources.catalogue import Redshifts
from hpcphotoz.sources.engine.append import Target


def plan_row_ranges(
    sources: Sequence[SourceFile],
    ids: Sequence[npt.NDArray[np.int64]],
    table: Redshifts | None,
    ebv: Sequence[npt.NDArray[np.float32]] | None,
    shard_rows: int,
    target: Target,
) -> tuple[list[tuple[RowRange, ...]], int]:
    """Returns the ranges of rows of each shard, from one file or several; and how many the target has."""
    new = [target.lacks(own) for own in ids]
    already_there = sum(int((~one).sum()) for one in new)
    used = [k for k, one in enumerate(new) if one.any()]
    if not used:
        return [], already_there
    sources, ids = [sources[k] for k in used], [ids[k] for k in used]
    by_map = None if ebv is None else np.concatenate([ebv[k] for k in used])
    there = ~np.concatenate([new[k] for k in used])
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    again = np.zeros(len(every), np.bool_)
    again[order[1:]] = every[order[1:]] == every[order[:-1]]
    ends = np.cumsum([len(part) for part in ids])
    units = []
    for start in range(0, len(every), shard_rows):
        stop, row_ranges = min(start + shard_rows, len(every)), []
        while start < stop:
            k = int(np.searchsorted(ends, start, side="right"))
            base, until = int(ends[k]) - len(ids[k]), min(stop, int(ends[k]))
            z = None if table is None else table.lookup(every[start:until])
            listed = [tuple(np.flatnonzero(rows[start:until]).tolist()) for rows in (again, there)]
            mapped = None if by_map is None else by_map[start:until]
            if not there[start:until].all():
                row_ranges.append(RowRange(sources[k], start - base, until - base, z, mapped, *listed))
            start = until
        if row_ranges:
            units.append(tuple(row_ranges))
    return units, already_there
