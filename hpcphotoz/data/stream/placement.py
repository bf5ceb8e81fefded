"""Where every object goes in training: its step and its position in the global batch, without reading it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcphotoz.data.order import Int64Array, WindowOrder
from hpcphotoz.data.stream.mixture import MixedStream
from hpcphotoz.data.stream.stream import Stream


@dataclass(frozen=True)
class Placement:
    """Objects of one window of one dataset, in the order in which they lie in its blocks."""

    dataset: int
    pass_number: int  # of the pass over the dataset; with one dataset, the epoch
    shard: Int64Array  # (n,)
    row: Int64Array  # (n,)
    step: Int64Array  # (n,) optimiser steps before that of the object
    position: Int64Array  # (n,) in the global batch of that step

    def before(self, step: int) -> "Placement":
        """Those of the objects that come before a step."""
        keep = self.step < step
        columns = (column[keep] for column in (self.shard, self.row, self.step, self.position))
        return Placement(self.dataset, self.pass_number, *columns)


def placements(stream: Stream | MixedStream, first: int, last: int) -> Iterator[Placement]:
    """Yield the windows of all ranks that hold the objects of steps `first` to `last` - 1, and these alone.

    Args:
        stream: the training objects, counted.
        first, last: steps of training; they may lie in several epochs.
    """
    if isinstance(stream, Stream):
        yield from _of_one(stream, first, last)
        return
    for dataset in range(len(stream.parts)):
        yield from _of_several(stream, dataset, first, last)


def _of_one(stream: Stream, first: int, last: int) -> Iterator[Placement]:
    batches = stream.batches
    for epoch in range(first // batches, -(-last // batches)):
        start = max(first - epoch * batches, 0)
        for window in stream.plan(epoch, start):
            if epoch * batches + window.first >= last:
                return
            size = min(stream.batch_size(0), len(window.row))
            batch = window.first + window.place // size
            keep = batch >= start
            found = window.shard, window.row, epoch * batches + batch, window.place % size
            yield Placement(0, epoch, *(column[keep] for column in found)).before(last)


def _of_several(stream: MixedStream, dataset: int, first: int, last: int) -> Iterator[Placement]:
    part, passes = stream.parts[dataset], stream.passes[dataset]
    number, start = passes.at(first)
    while passes.place(number, start)[0] < last:
        for window in part.plan(number, start, passes.head(number)):
            if passes.place(number, window.first)[0] >= last:
                return
            found = _in_global_batches(stream, dataset, number, window, start)
            yield found.before(last)
        number, start = number + 1, 0


def _in_global_batches(
    stream: MixedStream, dataset: int, number: int, window: WindowOrder, start: int
) -> Placement:
    """The objects of a window of pass `number` from its batch `start` on, placed in global batches."""
    part, passes = stream.parts[dataset], stream.passes[dataset]
    size = min(part.batch_size(0), len(window.row))
    batch, within = window.first + window.place // size, window.place % size
    step, position = np.zeros_like(batch), np.zeros_like(batch)
    for each in np.unique(batch).tolist():
        rows = batch == each
        at, begins = passes.place(number, each)
        places = np.flatnonzero(stream.datasets_at(at) == dataset)
        step[rows], position[rows] = at, places[begins + within[rows]]
    keep = batch >= start
    return Placement(
        dataset, number, *(column[keep] for column in (window.shard, window.row, step, position))
    )
