"""Audits the records of a run: objects lost and repeated, attacks missing, among the steps that count.

A step counts once: in the last start that resumed at it or before it. What earlier starts did at the same
step was lost with them and repeated; its update is not in the final weights. Where a start resumed is not
taken from what it says, but from the checkpoint that it loaded: from the steps that had been recorded when
that was copied.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from benchmarks.faults.records import StartRecord, StepLine
from hpcphotoz.config import Config
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.order import attacked_mask, split_part
from hpcphotoz.data.stream.stream import Stream


class Batch(NamedTuple):
    """A global batch: its epoch, the ids of its objects, and of those that are attacked."""

    epoch: int
    objects: frozenset[int]
    attacked: frozenset[int]


class Start(NamedTuple):
    """One start of a run, and the steps it began."""

    resumed: int | None  # number of updates in the checkpoint that it loaded; None: it loaded none so far
    lines: Sequence[StepLine]


@dataclass(frozen=True)
class Audit:
    """What went wrong with the objects of a run, added up over its epochs, and how much was repeated."""

    objects_lost: int  # not seen in an epoch
    objects_repeated: int  # seen again in an epoch, or not of the training part
    attacks_missing: int  # which the order of objects asks for
    attacks_repeated: int  # beyond those
    batches_changed: int  # steps whose objects or attacked objects are not those of the step
    objects_seen: int
    attacks_seen: int
    steps: int
    steps_repeated: int  # begun in a start that was lost before they were saved

    @property
    def clean(self) -> bool:
        """Whether no object and no attack was lost, repeated or moved to another step."""
        return not any(value for name, value in asdict(self).items() if name in _WRONG)


_WRONG = ("objects_lost", "objects_repeated", "attacks_missing", "attacks_repeated", "batches_changed")


def expected(data: Path, config: Config) -> tuple[frozenset[int], list[Batch]]:
    """Ids of the training objects, by the hash of the split, and the global batches, by the order of objects.

    Args:
        data: dataset folder.
        config: of the run.
    """
    of, run, ids = config.data, config.run, []
    for shard in read_manifest(data).shards:
        with h5py.File(data / shard.file) as file:
            ids.append(file["object_id"][:])
    every = np.concatenate(ids)
    training = every[split_part(every, of.validation, of.test, of.split_seed) == 0]
    stream = Stream(data, of, global_batch=run.global_batch, seed=run.seed)
    batches: dict[int, Batch] = {}
    for epoch in range(run.epochs):
        for window in stream.plan(epoch):
            size = min(run.global_batch, len(window.row))
            number, position = np.divmod(window.place, size)
            attacked = attacked_mask(position, config.adversarial.fraction)
            of_window = np.array([ids[k][row] for k, row in zip(window.shard, window.row, strict=True)])
            for k in range(number.max() + 1):
                which = of_window[number == k], of_window[(number == k) & attacked]
                step = epoch * stream.batches + window.first + k
                batches[step] = Batch(epoch, *(frozenset(each.tolist()) for each in which))
    return frozenset(training.tolist()), [batches[step] for step in range(len(batches))]


def lineage(records: Sequence[StartRecord]) -> list[Start]:
    """The starts of a run, by their records in order, with the steps at which they resumed."""
    updates, starts = {0: 0}, list[Start]()  # updates in the checkpoint of each name
    for record in records:
        resumed = None if record.loaded is None else updates.get(record.loaded, record.loaded)
        for name, begun in record.copied:
            updates[name] = begun + 1 if begun is not None else resumed or 0
        starts.append(Start(resumed, record.lines))
    return starts


def audit(starts: Sequence[Start], training: frozenset[int], batches: Sequence[Batch]) -> Audit:
    """Compare what the starts of a run have recorded with what each of its steps should be.

    Args:
        starts: in their order.
        training: ids of the objects that each epoch must see once.
        batches: of every step of the run.
    """
    owner: dict[int, int] = {}  # of each step, the start in which it counts
    for number, start in enumerate(starts):
        if start.resumed is not None:
            owner |= dict.fromkeys(range(start.resumed, len(batches)), number)
    seen, attacked = defaultdict[int, Counter[int]](Counter), defaultdict[int, Counter[int]](Counter)
    begun = {(number, line.step) for number, start in enumerate(starts) for line in start.lines}
    for number, start in enumerate(starts):
        for line in start.lines:
            # A step that its checkpoint holds already is in the weights a second time.
            if owner.get(max(line.step, start.resumed or 0)) == number:
                seen[line.step].update(line.objects)
                attacked[line.step].update(line.attacked)
    figures = Counter[str]()
    for epoch in sorted({batch.epoch for batch in batches}):
        steps = [step for step, batch in enumerate(batches) if batch.epoch == epoch]
        objects, attacks = (sum((each[step] for step in steps), Counter()) for each in (seen, attacked))
        wanted = Counter(each for step in steps for each in batches[step].attacked)
        once = Counter(training)
        figures["objects_lost"] += (once - objects).total()
        figures["objects_repeated"] += (objects - once).total()
        figures["attacks_missing"] += (wanted - attacks).total()
        figures["attacks_repeated"] += (attacks - wanted).total()
        figures["objects_seen"] += objects.total()
        figures["attacks_seen"] += attacks.total()
    changed = sum(
        seen[step] != Counter(batch.objects) or attacked[step] != Counter(batch.attacked)
        for step, batch in enumerate(batches)
    )
    beyond = sum(line.step >= len(batches) for start in starts for line in start.lines)
    return Audit(
        **{name: figures[name] for name in _COUNTED},
        batches_changed=changed + beyond,
        steps=len(batches),
        steps_repeated=len(begun) - len(seen),
    )


_COUNTED = (*_WRONG[:4], "objects_seen", "attacks_seen")
