"""The objects that are measured, of all ranks: z_spec and the columns by which metrics are binned."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation.scoring.columns import Binning, ObjectColumns
from hpcphotoz.evaluation.scoring.exact import exact_quantiles, sum_over_ranks
from hpcphotoz.evaluation.scoring.spill import Spill, SpilledColumns
from hpcphotoz.ranks import Ranks

Floats = npt.NDArray[np.float32]
QUANTILE_BINS = 5


class Objects:
    """Collects the objects batch by batch, and finds the edges of bins over those of all ranks."""

    def __init__(self, spill: Spill, read: ObjectColumns, ranks: Ranks, keep: bool) -> None:
        names = tuple(dict.fromkeys(("z_spec", *read.names)))
        self.columns, self.ranks = SpilledColumns(spill, names), ranks
        self.total = self.unlabelled = 0  # of all ranks, after `count`
        self.meaning = read.meaning
        self._read, self.keep, self._ids = read, keep, [np.zeros(0, np.int64)]

    def add(self, stamps: Stamps) -> None:
        """Add the objects of a batch."""
        found = dict(zip(self._read.names, self._read(stamps), strict=True))
        self.columns.append(np.stack([{"z_spec": stamps.z_spec, **found}[one] for one in self.columns.names]))
        if self.keep:
            self._ids.append(stamps.object_id)

    def count(self) -> None:
        """Count the objects of all ranks, when all are added."""
        unknown = sum(int(np.isnan(z_spec).sum()) for (z_spec,) in self.columns.blocks("z_spec"))
        counts = np.array([len(self.columns), unknown])
        self.total, self.unlabelled = sum_over_ranks(counts, self.ranks).tolist()

    def edges(self, binning: Binning) -> tuple[float, ...]:
        """Edges of the bins: those given, or of bins of equal numbers of objects of known z_spec."""
        if binning.edges is not None:
            return binning.edges

        def known() -> Iterator[tuple[Floats, npt.NDArray[np.int64]]]:
            for z_spec, values in self.columns.blocks("z_spec", binning.column):
                some = values[np.isfinite(z_spec) & np.isfinite(values)]
                yield some, np.zeros(len(some), np.int64)

        found = exact_quantiles(known, 1, np.linspace(0, 1, QUANTILE_BINS + 1).tolist(), self.ranks)[0]
        if np.isnan(found).any():  # no object has a value
            return ()
        unique = np.unique(found)
        return tuple(unique.tolist()) if len(unique) > 1 else (float(unique[0]), float(unique[0]))

    def gathered(self, columns: SpilledColumns) -> Floats:
        """Columns of the objects of all ranks, (columns, N), in stored order: in memory."""
        mine = [np.stack(block) for block in columns.blocks()]
        return gather_rows(
            np.concatenate([np.zeros((len(columns.names), 0), np.float32), *mine], axis=1), self.ranks, 1
        )

    def kept(self, columns: SpilledColumns) -> Floats | None:
        """`gathered`, if values of each object are kept."""
        return self.gathered(columns) if self.keep else None

    def kept_z_spec(self) -> Floats | None:
        """z_spec of all ranks, if values of each object are kept."""
        kept = self.kept(self.columns)
        return None if kept is None else kept[self.columns.names.index("z_spec")]

    def kept_ids(self) -> npt.NDArray[np.int64] | None:
        """Object ids of all ranks, if values of each object are kept."""
        return gather_rows(np.concatenate(self._ids), self.ranks) if self.keep else None


def gather_rows(values: npt.NDArray[Any], ranks: Ranks, axis: int = 0) -> npt.NDArray[Any]:
    """Join the arrays of all ranks along an axis, in order of rank."""
    return np.concatenate(ranks.allgather(values), axis=axis)
