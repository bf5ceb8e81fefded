"""Connects the ranks of a command other than `train` by gloo: for torchrun, srun and `hpcphotoz launch`."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import distributed as dist

from hpcphotoz.errors import first_line
from hpcphotoz.ranks import RankLost, Ranks
from hpcphotoz.training.distributed.group import process_group
from hpcphotoz.training.distributed.presence import Presence
from hpcphotoz.training.distributed.store import in_thread
from hpcphotoz.training.monitoring.lost_ranks import WaitLimits, joined
from hpcphotoz.world import World

_START_S = 300.0
# A rank waits for the slowest one, however long that works; that of one which has died ends at once, as its
# connections close.
_WORK_S = 30 * 24 * 3600.0
_STOP = "stop-asked"


class GlooCommunicator:
    """Ranks that torch's process group connects, see `ranks.Communicator`; exchanges are on CPUs.

    Signals are handled during a wait: torch waits in a thread.
    """

    def __init__(self, world: World, presence: Presence) -> None:
        self.rank, self.size, self._presence = world.rank, world.size, presence

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0."""
        box = [value]
        self._wait(lambda: dist.broadcast_object_list(box, 0))
        return box[0]

    def allgather(self, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        found: list[Any] = [None] * self.size
        self._wait(lambda: dist.all_gather_object(found, value))
        return found

    def ask_to_stop(self) -> None:
        """Set a key of the store in which the ranks have met."""
        self._presence.store.set(_STOP, "")

    def stop_asked(self) -> bool:
        """Whether the key is there."""
        try:
            return bool(self._presence.store.check([_STOP]))
        except (RuntimeError, dist.DistError) as error:  # the store has gone with rank 0
            raise self._lost(error) from None

    def end_stop(self, asked: Sequence[int]) -> None:
        """Do nothing: the ranks that have failed end, and their store with them."""

    def _wait(self, exchange: Callable[[], None]) -> None:
        try:
            in_thread(lambda _: exchange(), time.monotonic() + _WORK_S)
        except (RuntimeError, TimeoutError, dist.DistError) as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> RankLost:
        who = self._presence.missing_ranks() or first_line(error)
        self._presence.leave()
        return RankLost(f"rank {self.rank} has lost another rank, and ends: {who}")


@contextlib.contextmanager
def gloo_ranks(world: World, options: Mapping[str, str]) -> Iterator[Ranks]:
    """Connect the ranks of a launcher, and leave them at the end.

    Args:
        world: this rank's place among at least two ranks.
        options: name and value of what must be the same on all ranks.

    Raises:
        BadInput: no address to meet at, or options or an installation that differ from those of rank 0.
        OtherRankFailed: another rank has such a problem, and reports it.
        RankLost: not all ranks joined in time.
    """
    limits = WaitLimits(_START_S, _WORK_S)
    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stdout(sys.stderr):  # which ranks are where: no result of the command
            stack.enter_context(process_group(world, limits, options, "cpu"))
        limits.end_start()
        presence = joined[-1].presence
        assert presence is not None  # there are several ranks
        yield Ranks(GlooCommunicator(world, presence))
