"""The global batches of a run, divided among all ranks: sizes, attacked objects, and every object once."""

from dataclasses import dataclass

import numpy as np

from hpcphotoz.data.order import Int64Array, attacked_mask, rank_slice
from hpcphotoz.data.stream.mixture import MixedStream
from hpcphotoz.data.stream.placement import Placement, placements
from hpcphotoz.data.stream.stream import Stream

MOST_OBJECTS = 2_000_000  # whose places are checked: some 3 s


@dataclass(frozen=True)
class Division:
    """A global batch divided among ranks."""

    objects: Int64Array  # (ranks,) number of objects of each rank
    attacked: Int64Array  # (ranks,) number of those that are attacked

    @property
    def idle(self) -> int:
        """Number of ranks without objects."""
        return int(np.count_nonzero(self.objects == 0))

    @property
    def without_attack(self) -> int:
        """Number of ranks that have objects and no attacked one, if another rank has some."""
        none = (self.attacked == 0) & (self.objects > 0)
        return int(np.count_nonzero(none)) if self.attacked.any() else 0


def slice_starts(size: int, ranks: int) -> Int64Array:
    """The first position of each rank in a global batch of `size`, and `size`: (ranks + 1,).

    Raises:
        AssertionError: the slices of two ranks overlap, or leave a gap.
    """
    slices = [rank_slice(size, rank, ranks) for rank in range(ranks)]
    starts = np.array([0, *(each.stop for each in slices)])
    if starts[:-1].tolist() != [each.start for each in slices] or starts[-1] != size:
        raise AssertionError(f"the slices of {ranks} ranks do not divide a batch of {size}")
    return starts


def divide(size: int, ranks: int, fraction: float) -> Division:
    """Divide a global batch of `size` objects, of which `fraction` are attacked, among ranks."""
    starts = slice_starts(size, ranks)
    attacked = np.concatenate([[0], np.cumsum(attacked_mask(np.arange(size), fraction))])
    return Division(np.diff(starts), np.diff(attacked[starts]))


def rank_of_positions(position: Int64Array, size: int, ranks: int) -> Int64Array:
    """The rank that has each position of a global batch of `size` objects."""
    return np.searchsorted(slice_starts(size, ranks), position, side="right") - 1


@dataclass(frozen=True)
class OrderCheck:
    """What was found of the objects of an epoch, over all ranks."""

    steps: int  # that were checked
    objects: int  # in them
    whole: bool  # whether they are a whole epoch
    problem: str = ""  # what is wrong; "": nothing


def check_order(stream: Stream | MixedStream, step: int, most: int = MOST_OBJECTS) -> OrderCheck:
    """Check that every position of every global batch has one object, and that no pass repeats an object.

    The ranks' slices divide the positions (see `slice_starts`), so that every object is on one rank.

    Args:
        stream: the training objects, counted.
        step: a step of the epoch that is checked.
        most: number of objects, about, after which the rest of the epoch is left out.
    """
    batches, size = stream.batches, stream.batch_size(0)
    first = step // batches * batches
    steps = min(batches, max(most // size, 2))
    sizes = np.array([stream.batch_size(number) for number in range(steps)])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = list(placements(stream, first, first + steps))
    place = np.concatenate([starts[one.step - first] + one.position for one in found])
    filled = np.bincount(place, minlength=int(starts[-1]))
    whole = steps == batches
    problem = ""
    if len(filled) > starts[-1] or (filled != 1).any():
        number = int(np.searchsorted(starts, np.flatnonzero(filled != 1)[0], side="right"))
        problem = f"step {first + number}: a position of its global batch has no object, or several"
    elif repeated := _repeated(found):
        problem = f"{repeated} objects come twice in one pass over a dataset"
    elif whole and (missing := _missing(stream, found)):
        problem = f"{missing} objects do not come in the epoch"
    return OrderCheck(steps, int(starts[-1]), whole, problem)


def _repeated(found: list[Placement]) -> int:
    passes = {(one.dataset, one.pass_number) for one in found}
    return sum(_objects(found, *which) - _distinct(found, *which) for which in passes)


def _missing(stream: Stream | MixedStream, found: list[Placement]) -> int:
    seen = [_distinct(found, dataset) for dataset in range(len(stream.parts))]
    return sum(part.rows - n for part, n in zip(stream.parts, seen, strict=True))


def _objects(found: list[Placement], dataset: int, number: int) -> int:
    return sum(len(one.row) for one in found if (one.dataset, one.pass_number) == (dataset, number))


def _distinct(found: list[Placement], dataset: int, number: int | None = None) -> int:
    keys = [
        (one.shard << 40) | one.row
        for one in found
        if one.dataset == dataset and number in (None, one.pass_number)
    ]
    return len(np.unique(np.concatenate(keys))) if keys else 0
