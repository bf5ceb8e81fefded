"""A stream that is iterated epoch after epoch, and whose place in them is saved and restored."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from hpcphotoz.config import Data
from hpcphotoz.data.order import ORDER
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.errors import BadInput

_WITHOUT_EFFECT = {"augment", *Data.may_change}  # options on which the order of the objects does not depend


class ResumableStream(ABC):
    """Iterates over the epochs of a stream, one after the other, and resumes at any batch.

    Args:
        options: of the stream.
        facts: what else determines the order of the objects, as values that `torch.save` and JSON keep.
    """

    def __init__(self, options: Data, **facts: Any) -> None:
        self._order = {**facts, **options.model_dump(exclude=_WITHOUT_EFFECT), "order": ORDER}
        self._place = {"epoch": 0, "batch": 0}  # of the next batch

    @property
    @abstractmethod
    def batches(self) -> int:
        """Global batches an epoch."""

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch, from global batch `start` on."""

    def __iter__(self) -> Iterator[Batch]:
        """This rank's batches that are left of the current epoch; the next iteration yields the next epoch.

        Raises:
            BadInput: as `epoch`.
        """
        epoch, start = self._place["epoch"], self._place["batch"]
        for batch in self.epoch(epoch, start):
            last = batch.index + 1 == self.batches
            self._place = {"epoch": epoch + last, "batch": 0 if last else batch.index + 1}
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where iteration continues, for a checkpoint; the batch that was yielded last counts as done.

        `epoch` and `batch` are the next ones; the rest determines the order. The state holds for any world
        size and fits into `torch.save`.
        """
        return {**self._place, **self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the stream stood whose `state_dict` is given.

        Raises:
            BadInput: no such state, or that of a stream of other datasets, seed, batch size, part or order:
                names what differs.
        """
        wanted = self._place.keys() | self._order.keys()
        if state.keys() != wanted:
            odd = ", ".join(sorted(wanted ^ state.keys()))
            raise BadInput(f"state of a stream: {odd}: missing, or not expected: is it of another version?")
        for name, own in self._order.items():
            if state[name] != own:
                raise BadInput(
                    f"state of a stream: {name} was {state[name]!r} and is {own!r}: "
                    "the objects would come in another order"
                )
        for name in self._place:
            if type(state[name]) is not int or state[name] < 0:
                raise BadInput(f"state of a stream: {name} {state[name]!r}: want a whole number from 0")
        self._place = {name: state[name] for name in self._place}
