"""Streams one part of the split of several datasets, one dataset after the other."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcphotoz.config import Data
from hpcphotoz.data.datasets import Datasets, check_columns
from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.select.subset import SplitPart
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput


class ChainedStream:
    """Batches of one part of the split of several datasets, one dataset after the other, in stored order.

    Args:
        datasets, part: which objects.
        options, global_batch, seed, world, pinned: as of `Stream`.

    Raises:
        BadInput: as `Stream`.
    """

    def __init__(
        self, datasets: Datasets, options: Data, part: SplitPart, *, global_batch: int, **how: Any
    ) -> None:
        self.parts = tuple(
            open_dataset(folder, options, part, global_batch=global_batch, shuffle=False, **how)
            for folder in datasets.folders
        )
        self.manifest = common_manifest(datasets, self.parts, global_batch)

    @property
    def rows(self) -> int:
        """Number of objects of all datasets, over all ranks."""
        return sum(part.rows for part in self.parts)

    @property
    def batches(self) -> int:
        """Global batches of all datasets."""
        return sum(part.batches for part in self.parts)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This rank's batches; raises BadInput as `Stream.epoch`."""
        first = 0
        for part in self.parts:
            for batch in part.epoch(epoch):
                yield replace(batch, index=first + batch.index)
                del batch
            first += part.batches


def open_dataset(folder: Path, options: Data, part: SplitPart, **how: Any) -> Stream:
    """A stream of one of several datasets, with its folder in every refusal; arguments as of `Stream`."""
    try:
        return Stream(folder, options, part=part, **how)
    except BadInput as error:
        if str(folder) in str(error):
            raise
        raise BadInput(f"{folder}: {error}") from None  # of the predicate, which its columns do not allow


def common_manifest(datasets: Datasets, parts: tuple[Stream, ...], global_batch: int) -> Manifest:
    """`Datasets.mixed_manifest` of opened datasets, whose extra columns of the selection must be equal."""
    manifest = datasets.mixed_manifest([part.manifest for part in parts], global_batch)
    names = set().union(*(part.labels for part in parts))
    check_columns(datasets.folders, [part.manifest.header for part in parts], names)
    return manifest
