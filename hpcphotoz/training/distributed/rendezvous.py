"""Ranks meet in a key-value store, and compare their devices, options and networks before anything starts."""

import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from torch import distributed as dist

from hpcphotoz.errors import BadInput
from hpcphotoz.training.distributed import gloo
from hpcphotoz.training.distributed.preflight import installation, merged
from hpcphotoz.training.distributed.presence import Presence, RankAddress
from hpcphotoz.training.distributed.rank_device import conflict
from hpcphotoz.training.distributed.store import POLL_S, connect, in_thread
from hpcphotoz.world import World

_LEAVING_S = 5.0
_SIZE = "number of ranks"
_HOST = "host"  # of rank 0, beside its options
_OF_A_RUN = (_SIZE, "--out", "--data")  # if one of these differs, the ranks belong to two runs


class Problem(NamedTuple):
    """Why a run cannot begin, and the ranks that report it to the user."""

    ranks: tuple[int, ...]
    text: str


class Rendezvous:
    """Brings the ranks of a run together, and compares their devices, options and networks.

    Args:
        world: this rank's place among at least two ranks.
        timeout_s: seconds in which all ranks must have joined.
        env: environment with MASTER_ADDR and MASTER_PORT; the process's own by default.

    Raises:
        BadInput: no address, or one that cannot be used.
        TimeoutError: nobody answers there.
    """

    def __init__(self, world: World, timeout_s: float, env: Mapping[str, str] | None = None) -> None:
        self._world, self._limit = world, f"run.start_timeout_s = {timeout_s:g} s"
        self._end = time.monotonic() + timeout_s
        self._connection = connect(world, timeout_s, env)
        self._where = self._connection.where
        self._abandoned = threading.Event()
        self.store = _under(self._connection.store, "hpcphotoz")  # after `first_problem`: of this start alone
        self._listens_at = ""
        self.listeners = ""  # where gloo listens on each host
        self.peer: str | None = None  # address towards which gloo must choose an interface
        self.presence = Presence()

    def first_problem(
        self,
        problem: str | None,
        place: tuple[str, str],
        options: Mapping[str, str],
        listens_at: str = "",
    ) -> Problem | None:
        """Wait for all ranks; return the first problem of a rank, the same on every rank, or None.

        A rank with other options than rank 0 has a problem, which both report: it may belong to another run
        with the same port.

        Args:
            problem: problem of this rank; None: it has none.
            place: host and device of this rank.
            options: name and value of every option that must be the same on all ranks.
            listens_at: `gloo.listening_address`; "": the ranks do not use gloo.

        Raises:
            TimeoutError: a rank does not join in time, or the store is cut off.
        """
        self._listens_at = listens_at

        def compare(abandoned: threading.Event) -> Problem | None:
            self._abandoned = abandoned
            if self._connection.outlives_ranks:
                self.store = _under(self.store, self._start())
            return self._compare(problem, place, options)

        try:
            return in_thread(compare, self._end + _LEAVING_S + 1)
        except TimeoutError as error:
            if str(error):
                raise
            raise TimeoutError(
                f"rank {self._world.rank} on {place[0]}: the store at {self._where} no longer answers: "
                f"waited {self._limit}: look at the network between the hosts"
            ) from None

    def _start(self) -> str:
        """Agree on a name for this start of the ranks, under which no earlier start has left keys.

        torchrun's store outlives the ranks: restarted ones find the keys of those before, who may have been
        more. Its count of restarts is no such name: each host counts its own, and leaves out those after
        another host came or went. So rank 0 draws one, and lists who has heard of it; a rank that is
        not on the list has read the name of an earlier start, and reads again.
        """
        own, rank = uuid.uuid4().hex, self._world.rank
        if self._world.is_first:
            keys = [f"heard/{other}" for other in range(1, self._world.size)]
            self.store.set("start", own)
            store = _under(self.store, own)
            self._wait(keys, self._end, store)
            store.set("ranks", json.dumps([own, *(store.get(key).decode() for key in keys)]))
            return own
        self._wait(["start"], self._end)
        start, pause = "", POLL_S
        while True:
            if (newest := self.store.get("start").decode()) != start:
                start, store = newest, _under(self.store, newest)
                store.set(f"heard/{rank}", own)
            if store.check(["ranks"]) and own in json.loads(store.get("ranks")):
                return start
            if time.monotonic() > self._end or self._abandoned.wait(pause):
                raise TimeoutError(self._absent([]))
            pause = min(0.5, 1.5 * pause)

    def _compare(
        self, problem: str | None, place: tuple[str, str], options: Mapping[str, str]
    ) -> Problem | None:
        rank, size = self._world.rank, self._world.size
        options = merged({_SIZE: str(size), **options}, _OF_A_RUN)
        if self._world.is_first:
            self.store.set("options", json.dumps({**options, _HOST: place[0]}))
        else:
            self._wait(["options"], self._end)
            first = json.loads(self.store.get("options"))
            host = str(first.pop(_HOST, self._where))
            if differs := self._difference(options, first, place[0], host):
                return self._refused(Problem((0, rank), differs), place, int(first[_SIZE]))
        self._report(rank, Problem((rank,), problem) if problem else None, place)
        if self._world.is_first:
            keys = [f"rank/{other}" for other in range(size)]
            self._wait(keys, self._end)
            said = [json.loads(self.store.get(key)) for key in keys]
            own = next((found for found, *_ in said if found), None)
            peers, places = dict[str, str](), [gloo.Place(host, *at[:3]) for _, host, _, *at in said]
            ranks = [(host, own_address, port) for _, host, _, _, own_address, _, port in said]
            if own is None and (found := conflict([(host, device) for _, host, device, *_ in said])):
                own = Problem((found[0],), found[1])
            if own is None:
                try:
                    peers = gloo.find_peers(places)
                except BadInput as error:
                    own = Problem((0,), str(error))
            self.store.set("network", json.dumps([peers, gloo.listeners(places), ranks]))
            self.store.set("verdict", json.dumps(own))
        else:
            self._wait(["verdict"], self._end)
        peers, self.listeners, ranks = json.loads(self.store.get("network"))
        self.peer = peers.get(place[0])
        addresses = [RankAddress(*each) for each in ranks]
        self.presence.meet(addresses, rank, self._connection.store_address, self.store)
        verdict = json.loads(self.store.get("verdict"))
        if verdict is None:
            return None
        # The store ends with rank 0, which therefore waits until all ranks have read the verdict.
        self.store.set(f"read/{rank}", "")
        if self._world.is_first:
            with suppress(TimeoutError):
                self._wait([f"read/{other}" for other in range(size)], time.monotonic() + _LEAVING_S)
        return Problem(tuple(verdict[0]), verdict[1])

    def _refused(self, problem: Problem, place: tuple[str, str], size: int) -> Problem:
        """Report a problem of this rank to rank 0 of a world of `size`, which may have to wait for others."""
        rank = self._world.rank
        if rank < size:
            self._report(rank, problem, place)
            self.store.set(f"read/{rank}", "")
        return problem

    def _report(self, rank: int, problem: Problem | None, place: tuple[str, str]) -> None:
        """Tell rank 0 this rank's problem, place and addresses."""
        at = (
            self._listens_at,
            self._connection.own_address,
            bool(os.environ.get(gloo.VARIABLE)),
            self.presence.port,
        )
        self.store.set(f"rank/{rank}", json.dumps([problem, *place, *at]))

    def _difference(
        self, options: Mapping[str, str], first: Mapping[str, str], host: str, host_of_first: str
    ) -> str | None:
        """A message on the first option that differs from that of rank 0; None: all are the same."""
        names = dict.fromkeys([*options, *first])
        name = next((name for name in names if options.get(name) != first.get(name)), None)
        if name is None:
            return None
        another = "another run listens on this port: choose another, or " if name in _OF_A_RUN else ""
        advice = (
            "install the same on all hosts" if name in installation() else "give all ranks the same options"
        )
        return (
            f"rank {self._world.rank} on {host} has {name} {options.get(name)}, rank 0 on {host_of_first} at "
            f"{self._where} has {first.get(name)}: {another}{advice}"
        )

    def _wait(self, keys: list[str], end: float, store: Any = None) -> None:
        store, pause = store or self.store, POLL_S
        while not store.check(keys):
            if time.monotonic() > end or self._abandoned.wait(pause):
                raise TimeoutError(self._absent([key for key in keys if not store.check([key])]))
            pause = min(0.5, 1.5 * pause)

    def _absent(self, keys: list[str]) -> str:
        if not self._world.is_first:
            return f"rank {self._world.rank}: not all ranks joined within {self._limit}: rank 0 says which"
        absent = [key.partition("/")[2] for key in keys]
        named = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        return (
            f"{len(absent)} of {self._world.size} ranks did not join within {self._limit}: look at the "
            f"output of rank {named}"
        )


def _under(store: Any, prefix: str) -> Any:
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
