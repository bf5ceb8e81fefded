"""Which ranks have ended or cannot be reached: every rank listens at a port, to which others connect.

The kernel answers for a process: it completes a connection to one that is there, stopped or busy as it may
be, and refuses one to a port whose process has ended. Nothing answers for a host that is dead or cut off.
Nor for a port with a full backlog: a thread takes the connections off it, and a rank looks a few times only.
"""

import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, NamedTuple

from torch import distributed as dist

from hpcphotoz.training.distributed.store import in_thread

ENDED, UNREACHABLE = "has ended", "cannot be reached"
_ANSWER_S = 3.0  # for the connections of one batch
_DYING_S, _LOOK_AGAIN_S = 1.0, 0.05  # for how long a killed rank may still seem to be there; first pause
_BACKLOG = 4096  # connections that the kernel completes; Linux before 5.4 takes 128 unless it is set up so
_AT_ONCE = 256  # connections of a batch; each takes a file descriptor, of which there may be 1024
_NAMED = 8


class RankAddress(NamedTuple):
    """Where a rank listens."""

    host: str
    address: str
    port: int


class Presence:
    """This rank's port, and where all ranks listen once they have met.

    Attributes:
        port: at which this process listens, on all interfaces.
    """

    def __init__(self) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._take_off, name="presence", daemon=True).start()
        self._ranks: Sequence[RankAddress] = ()
        self.store: Any = None  # of this start alone, once the ranks have met

    def meet(self, ranks: Sequence[RankAddress], own: int, store_host: str, store: Any) -> None:
        """Keep where all ranks listen.

        Args:
            ranks: in order.
            own: number of this rank.
            store_host: address of rank 0's host, seen from here; rank 0 itself may know a loopback one alone.
            store: of this start alone.
        """
        here, first = ranks[own].host, ranks[0].host
        self._own, self.store = own, store
        self._ranks = [
            rank._replace(address=store_host)
            if rank.host == first != here and is_loopback(rank.address)
            else rank
            for rank in ranks
        ]

    @property
    def hosts(self) -> list[str]:
        """Names of the hosts of all ranks, in order."""
        return [rank.host for rank in self._ranks]

    def describe_missing(
        self,
        about: Callable[[int], str] = lambda _: "",
        hung: Callable[[Collection[int]], str] = lambda _: "",
    ) -> str:
        """A clause on the ranks that are not there, as in "rank 1 on node1 has ended"; "": unknown.

        A rank that has left because of another is named only if no other is to blame.

        Args:
            about: more about a rank that is not there, by its number.
            hung: a clause on a rank that hangs, given the numbers of those that are not there; "": none does.
        """
        if not self._ranks:
            return ""
        found, kept = self._missing()
        hangs = hung(found)
        if not hangs:
            kept = kept or found
        named = [
            f"rank {rank} on {self._ranks[rank].host} {what}{about(rank)}"
            for rank, what in list(kept.items())[:_NAMED]
        ]
        more = f" and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
        if not found:
            return "all ranks are there, so one hangs" + (f": {hangs}" if hangs else "")
        missed = [f"seen from {self._ranks[self._own].host}, {', '.join(named)}{more}"] if named else []
        return ": ".join([*missed, *([hangs] if hangs else [])])

    def missing_ranks(self) -> str:
        """The clause of `describe_missing` if a rank is not there; "": all are, or they have not met."""
        return self.describe_missing() if self._ranks and self._missing()[0] else ""

    def leave(self) -> None:
        """Tell the others that this rank ends because of another one."""
        if self._ranks:
            with suppress(dist.DistError):
                self.store.set(f"left/{self._own}", "")

    def close(self) -> None:
        """Close the port."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait of the thread
        self._listener.close()

    def _take_off(self) -> None:
        with suppress(OSError):  # the port is closed
            while True:
                self._listener.accept()[0].close()

    def _missing(self) -> tuple[dict[int, str], dict[int, str]]:
        """What became of the ranks that are not there: of all, and without leavers.

        The kernel takes a killed process apart piece by piece: its connections were seen to be gone while its
        port still answered, so that nobody, or a leaver alone, was named. Hence further looks.
        """
        others = {rank: at for rank, at in enumerate(self._ranks) if rank != self._own}
        end, pause = time.monotonic() + _DYING_S, _LOOK_AGAIN_S
        while True:
            found = missing(others)
            kept = self._without_leavers(found)
            if kept or time.monotonic() > end:
                return found, kept
            time.sleep(pause)
            pause *= 4

    def _without_leavers(self, found: Mapping[int, str]) -> dict[int, str]:
        ended = [rank for rank, what in found.items() if what is ENDED]

        def leavers(_: object) -> set[int]:
            return {rank for rank in ended if self.store.check([f"left/{rank}"])}

        left = set[int]()
        if ended:
            with suppress(TimeoutError, dist.DistError):  # the store may have gone with rank 0
                left = in_thread(leavers, time.monotonic() + _ANSWER_S)
        return {rank: what for rank, what in found.items() if rank not in left}


def missing(ranks: Mapping[int, RankAddress]) -> dict[int, str]:
    """Those of the ranks that are not there: by number, in order, ENDED or UNREACHABLE."""
    found, numbers = dict[int, str](), sorted(ranks)
    for begin in range(0, len(numbers), _AT_ONCE):
        found |= _missing_of_batch({number: ranks[number] for number in numbers[begin : begin + _AT_ONCE]})
    return dict(sorted(found.items()))


def is_loopback(address: str) -> bool:
    """Whether an address, or a name that is none, leads back to the own host."""
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _missing_of_batch(ranks: Mapping[int, RankAddress]) -> dict[int, str]:
    found, end = dict[int, str](), time.monotonic() + _ANSWER_S
    sockets: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as waiting:
        try:
            for number, (_, address, port) in ranks.items():
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                sockets[number] = connection = socket.socket(family, socket.SOCK_STREAM)
                connection.setblocking(False)
                code = connection.connect_ex((address, port))
                if code == errno.EINPROGRESS:
                    waiting.register(connection, selectors.EVENT_WRITE, number)
                elif code:
                    found[number] = _meaning(code)
            while waiting.get_map() and (left := end - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    waiting.unregister(key.fileobj)
                    if code := sockets[key.data].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        found[key.data] = _meaning(code)
            found |= {key.data: UNREACHABLE for key in waiting.get_map().values()}
        finally:
            for connection in sockets.values():
                connection.close()
    return found


def _meaning(code: int) -> str:
    return ENDED if code == errno.ECONNREFUSED else UNREACHABLE
