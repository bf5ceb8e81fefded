"""Records what a run has before each of its updates, so that two runs can be compared to the bit.

As a command it records a rank of its own process, into FILE-R.pt of rank R:

    python -m tests.helpers.training.spy FILE train ...
"""

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcphotoz.attacks.ball import AttackBatch
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.loop import TrainingLoop
from hpcphotoz.training.overlap.streams import AdversarySource
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.step import StepOutcome

Record = dict[str, Any]


class Spy:
    """What one rank has had: before each update of a learner, and the random starts of attacks.

    Attributes:
        before: by step, what the update begins with.
        batches: by step, the slice of the global batch: identities, places, augmented images.
        norms: by step, the norms of the averaged gradients.
        sums: by step, the (4,) sums of the losses that `Step` returns.
        starts: random start of an object, by (seed, epoch, object id).
    """

    def __init__(self) -> None:
        self.before: dict[int, Record] = {}
        self.batches: dict[int, Record] = {}
        self.sums: dict[int, Tensor] = {}
        self.norms: dict[int, Tensor] = {}
        self.starts: dict[tuple[int, int, int], Tensor] = {}
        self._loop: TrainingLoop | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the runs of this process."""
        build, learner, begin = (
            TrainingComponents.build_step,
            TrainingLoop._run_learner,
            AttackBatch.begin,
        )

        def build_step(components: TrainingComponents, adversaries: AdversarySource, role: Any) -> Any:
            step = build(components, adversaries, role)

            def watched(batch: RankBatch) -> StepOutcome:
                self._record(components, batch)
                outcome = step(batch)
                self.sums[batch.step], self.norms[batch.step] = outcome.losses.sums, outcome.norms
                return outcome

            return watched

        def run_learner(loop: TrainingLoop, *given: Any) -> Any:
            self._loop = loop
            return learner(loop, *given)

        def begin_attack(batch: AttackBatch, key: Tensor | None, restart: int) -> Tensor:
            found = begin(batch, key, restart)
            if key is not None:
                for number, start in zip(batch.object_id.tolist(), found, strict=True):
                    self.starts[int(key[0]), int(key[1]), number] = start.clone()
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingComponents, "build_step", build_step)
            patch.setattr(TrainingLoop, "_run_learner", run_learner)
            patch.setattr(AttackBatch, "begin", begin_attack)
            yield

    def _record(self, components: TrainingComponents, batch: RankBatch) -> None:
        assert self._loop is not None
        average = components.average
        self.before[batch.step] = copy.deepcopy(
            {
                "model": dict(components.module.state_dict()),
                "optimiser": components.optimiser.state_dict(),
                "average": average.state_dict() if average else None,
                "sums": self._loop.metrics.sums,
                "scale": components.scale,
            }
        )
        attacked = batch.object_id[batch.attacked]
        self.batches[batch.step] = {
            "object_id": batch.object_id.clone(),
            "attacked": attacked.clone(),
            "positions": torch.from_numpy(batch.positions.copy()),
            "images": batch.images.clone(),
            "size": torch.tensor([batch.size]),
            "epoch": torch.tensor([int(batch.epoch)]),
        }


def whole_batches(ranks: Sequence[Spy]) -> dict[int, Record]:
    """By step, the global batch that the slices of all learners, in order of rank, make."""
    found: dict[int, Record] = {}
    for step in ranks[0].batches:
        slices = [spy.batches[step] for spy in ranks]
        joined = ("object_id", "attacked", "positions", "images")
        found[step] = {name: torch.cat([part[name] for part in slices]) for name in joined}
        found[step] |= {name: slices[0][name] for name in ("size", "epoch")}
    return found


def differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Names of the entries in which two nested records are not equal to the bit."""
    if isinstance(ours, Tensor):
        same = isinstance(theirs, Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return [] if same else [name]
    if isinstance(ours, Mapping):
        if not isinstance(theirs, Mapping) or set(ours) != set(theirs):
            return [f"{name}: the keys"]
        return [text for key in ours for text in differences(ours[key], theirs[key], f"{name}/{key}")]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [f"{name}: the length"]
        return [
            text
            for k, pair in enumerate(zip(ours, theirs, strict=True))
            for text in differences(*pair, f"{name}/{k}")
        ]
    return [] if type(ours) is type(theirs) and ours == theirs else [name]


def recorded(file: Path, size: int) -> list[Spy]:
    """What the ranks of a world have written with this module as their command."""
    return [torch.load(f"{file}-{rank}.pt", weights_only=False) for rank in range(size)]


def main() -> int:
    """Run the command line in the words after FILE, and write what was recorded."""
    from hpcphotoz.__main__ import main as command
    from hpcphotoz.world import detect

    file, spy = sys.argv[1], Spy()
    with spy.watching():
        status = command(sys.argv[2:])
    spy._loop = None
    torch.save(spy, f"{file}-{detect().rank}.pt")
    return status


if __name__ == "__main__":
    # Its class is that of the module, not of __main__: the test that reads the file knows no other.
    from tests.helpers.training import spy as module

    sys.exit(module.main())
