"""Ranks meet in a key-value store at MASTER_ADDR:MASTER_PORT, which rank 0 or torchrun holds.

Nothing here waits inside torch, because Python handles no signal during such a wait: Ctrl-C took up to the
timeout to work.
"""

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from torch import distributed as dist

from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.training.distributed.rank_device import conflict
from hpcphotoz.world import World

_POLL_S = 0.05
_LEAVING_S = 5.0
_FINISHING_S = 1.0
_SIZE = "number of ranks"
_OF_A_RUN = (_SIZE, "--out", "--data")  # if one of these differs, the ranks belong to two runs
_joined = itertools.count()  # counts the runs of this process


class Problem(NamedTuple):
    """Why a run cannot begin, and the ranks that report it to the user."""

    ranks: tuple[int, ...]
    text: str


class Rendezvous:
    """Brings the ranks of a run together, and compares their devices and options.

    Args:
        world: this rank's place among at least two ranks.
        timeout_s: seconds in which all ranks must have joined.
        env: environment with MASTER_ADDR and MASTER_PORT; the process's own by default.

    Raises:
        BadInput: no address, or one that cannot be used.
        TimeoutError: nobody answers there.
    """

    def __init__(self, world: World, timeout_s: float, env: Mapping[str, str] | None = None) -> None:
        env = os.environ if env is None else env
        self._world, self._timeout_s = world, timeout_s
        self._end = time.monotonic() + timeout_s
        self._host, self._port = _address(world, env)
        self._where = f"MASTER_ADDR, MASTER_PORT = {self._host}:{self._port}"
        self._limit = f"run.timeout_s = {timeout_s:g} s"
        # torchrun's store exists before the ranks and outlives them. Restarted ranks, and a second run of the
        # same processes, must not read the keys of an earlier run.
        held = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = f"{env.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_joined) if held else 0}"
        self.store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"hpcphotoz/{attempt}", self._connect(holds=world.is_first and not held)
        )

    def first_problem(
        self, problem: str | None, place: tuple[str, str], options: Mapping[str, str]
    ) -> Problem | None:
        """Wait for all ranks; return the first problem of a rank, the same on every rank, or None.

        A rank with other options than rank 0 has a problem, which both report: it may belong to another run
        with the same port.

        Args:
            problem: problem of this rank; None: it has none.
            place: host and device of this rank.
            options: name and value of every option that must be the same on all ranks.

        Raises:
            TimeoutError: a rank does not join in time.
        """
        rank, size = self._world.rank, self._world.size
        options = {_SIZE: str(size), **options}
        if self._world.is_first:
            self.store.set("options", json.dumps(options))
        else:
            self._wait(["options"], self._end)
            first = json.loads(self.store.get("options"))
            if differs := self._difference(options, first):
                return self._refused(Problem((0, rank), differs), place, int(first[_SIZE]))
        self.store.set(f"rank/{rank}", json.dumps([problem and Problem((rank,), problem), *place]))
        if self._world.is_first:
            keys = [f"rank/{other}" for other in range(size)]
            self._wait(keys, self._end)
            said = [json.loads(self.store.get(key)) for key in keys]
            own = next((found for found, _, _ in said if found), None)
            if own is None and (found := conflict([(host, device) for _, host, device in said])):
                own = Problem((found[0],), found[1])
            self.store.set("verdict", json.dumps(own))
        else:
            self._wait(["verdict"], self._end)
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
            self.store.set(f"rank/{rank}", json.dumps([problem, *place]))
            self.store.set(f"read/{rank}", "")
        return problem

    def _difference(self, options: Mapping[str, str], first: Mapping[str, str]) -> str | None:
        """A message on the first option that differs from that of rank 0; None: all are the same."""
        names = dict.fromkeys([*options, *first])
        name = next((name for name in names if options.get(name) != first.get(name)), None)
        if name is None:
            return None
        another = "another run listens on this port: choose another, or " if name in _OF_A_RUN else ""
        return (
            f"rank {self._world.rank} has {name} {options.get(name)}, rank 0 at {self._where} has "
            f"{first.get(name)}: {another}give all ranks the same options"
        )

    def _wait(self, keys: list[str], end: float) -> None:
        pause = _POLL_S
        while not self.store.check(keys):
            if time.monotonic() > end:
                raise TimeoutError(self._absent(keys))
            time.sleep(pause)
            pause = min(0.5, 1.5 * pause)

    def _absent(self, keys: list[str]) -> str:
        if not self._world.is_first:
            return f"rank {self._world.rank}: not all ranks joined within {self._limit}: rank 0 says which"
        absent = [key.partition("/")[2] for key in keys if not self.store.check([key])]
        named = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        return (
            f"{len(absent)} of {len(keys)} ranks did not join within {self._limit}: look at the output of "
            f"rank {named}"
        )

    def _connect(self, holds: bool) -> Any:
        listening = _listen(self._port) if holds else None
        self._until_answered()
        made: list[Any] = []
        failed: list[RuntimeError] = []
        ended = threading.Event()

        def make() -> None:
            how: dict[str, Any] = {"is_master": holds, "wait_for_workers": False}
            how |= {"master_listen_fd": listening, "timeout": timedelta(seconds=self._timeout_s)}
            try:
                store = dist.TCPStore(self._host, self._port, self._world.size, **how)  # type: ignore[attr-defined]
                made.append(store)
            except RuntimeError as error:
                failed.append(error)
            finally:
                ended.set()

        # In a thread, because a service that is not a store may accept the connection and never answer.
        try:
            threading.Thread(target=make, name="join", daemon=True).start()
            while not ended.wait(_POLL_S) and time.monotonic() < self._end:
                pass
        finally:
            # Python aborts if a thread returns from C++ while the interpreter ends (seen after Ctrl-C).
            ended.wait(_FINISHING_S)
        if not made:
            said = first_line(failed[0]) if failed else "no answer"
            raise TimeoutError(
                f"what listens at {self._where} is not rank 0 of this run ({said}): "
                "choose another MASTER_PORT"
            )
        return made[0]

    def _until_answered(self) -> None:
        while True:
            try:
                socket.create_connection((self._host, self._port), timeout=1).close()
                return
            except OSError as error:
                if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
                    raise BadInput(f"MASTER_ADDR={self._host}: no such host") from None
                if time.monotonic() > self._end:
                    raise TimeoutError(
                        f"rank {self._world.rank}: rank 0 does not listen at {self._where} "
                        f"({error.strerror or error}): waited {self._limit}"
                    ) from None
            time.sleep(4 * _POLL_S)


def _address(world: World, env: Mapping[str, str]) -> tuple[str, int]:
    if not env.get("MASTER_ADDR") or not env.get("MASTER_PORT"):
        raise BadInput(
            f"{world.size} ranks started by {world.launcher} but MASTER_ADDR and MASTER_PORT are not set: "
            "use torchrun or `hpcphotoz launch`, or set them to the first node's name and a free port"
        )
    port = env["MASTER_PORT"]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise BadInput(f"MASTER_PORT={port}: is no port: want 1 to 65535")
    return env["MASTER_ADDR"], int(port)


def _listen(port: int) -> int:
    """Listen on a port; returns the file descriptor of the socket."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        where = f"MASTER_PORT={port}: cannot listen there on {socket.gethostname()}"
        raise BadInput(f"{where}: {error.strerror}: choose a free port") from None
    return server.detach()
