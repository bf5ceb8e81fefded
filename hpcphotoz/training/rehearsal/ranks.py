"""The ranks of a rehearsal: which are planned, and which one takes steps."""

import re
from dataclasses import dataclass

from hpcphotoz.errors import BadInput
from hpcphotoz.world import World

_FORM = re.compile(r"([0-9]{1,6})(?::([0-9]{1,6}))?", re.ASCII)


@dataclass(frozen=True)
class RehearsedRanks:
    """`size` ranks, all of which are planned, and `rank`, whose steps are taken."""

    size: int
    rank: int = 0

    @classmethod
    def parse(cls, text: str) -> "RehearsedRanks":
        """The ranks of a command line: N, or N:R.

        Raises:
            BadInput: not of this form, no rank at all, or a rank that is not one of them.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise BadInput(
                f"--rehearse {text!r}: want a number of ranks, such as 1024, or with the rank that takes "
                "steps, such as 1024:7"
            )
        size, rank = int(found[1]), int(found[2] or 0)
        if size < 1:
            raise BadInput(f"--rehearse {text}: want at least one rank")
        if rank >= size:
            raise BadInput(f"--rehearse {text}: the ranks are 0 to {size - 1}: there is no rank {rank}")
        return cls(size, rank)

    @property
    def world(self) -> World:
        """All ranks, as the one that takes steps sees them."""
        return World(self.rank, self.size, launcher="rehearsal")

    @property
    def first(self) -> World:
        """The same as rank 0 sees them, which counts objects and speaks for all."""
        return World(0, self.size, launcher="rehearsal")
