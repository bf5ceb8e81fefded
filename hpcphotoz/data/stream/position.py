"""The place of a stream in its epochs, saved and restored with what determines the order of its objects."""

from collections.abc import Mapping
from typing import Any

from hpcphotoz.config import Data
from hpcphotoz.data.order import ORDER
from hpcphotoz.errors import BadInput

_WITHOUT_EFFECT = {"augment", *Data.may_change}  # options on which the order of the objects does not depend


class StreamPosition:
    """Epoch, and number of the next global batch in it.

    Args:
        options: of the stream.
        facts: what else determines the order of the objects, as values that `torch.save` and JSON keep.
    """

    def __init__(self, options: Data, **facts: Any) -> None:
        self._order = {**facts, **options.model_dump(exclude=_WITHOUT_EFFECT), "order": ORDER}
        self.epoch, self.batch = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position, and what determines the order."""
        return {"epoch": self.epoch, "batch": self.batch, **self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position that `state_dict` returned, of a stream of the same order.

        Raises:
            BadInput: no such state, or a state of another order: names what differs.
        """
        wanted = {"epoch", "batch", *self._order}
        if state.keys() != wanted:
            odd = ", ".join(sorted(wanted ^ state.keys()))
            raise BadInput(f"state of a stream: {odd}: missing, or not expected: is it of another version?")
        for name, own in self._order.items():
            if state[name] != own:
                raise BadInput(
                    f"state of a stream: {name} was {state[name]!r} and is {own!r}: "
                    "the objects would come in another order"
                )
        for name in ("epoch", "batch"):
            if type(state[name]) is not int or state[name] < 0:
                raise BadInput(f"state of a stream: {name} {state[name]!r}: want a whole number from 0")
        self.epoch, self.batch = state["epoch"], state["batch"]
