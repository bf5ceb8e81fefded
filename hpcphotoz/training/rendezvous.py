"""How ranks meet: a key-value store at MASTER_ADDR:MASTER_PORT, which rank 0 or torchrun holds.

Nothing here waits inside torch: there a wait hears no signal until it ends, and Ctrl-C took up to the
time-out.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from torch import distributed as dist

from hpcphotoz.errors import BadInput
from hpcphotoz.world import World

# From the (host, device) of every rank: the first rank that does not go with the others, and why.
Conflict = Callable[[list[tuple[str, str]]], tuple[int, str] | None]
_POLL_S = 0.05
_LEAVING_S = 5.0
_FINISHING_S = 1.0


class Rendezvous:
    """The store of a run, while its ranks come together.

    Args:
        world: this rank's place, of a world of at least two.
        timeout_s: seconds for all that is done here.
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
        # torchrun's own store is there before the ranks; ranks that it starts again must not read old keys.
        held = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"hpcphotoz/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}",
            self._connect(holds=world.is_first and not held),
        )

    def first_problem(
        self, problem: str | None, place: tuple[str, str], conflict: Conflict
    ) -> tuple[int, str] | None:
        """Wait for all ranks; return the first rank with a problem and what it is, the same on every rank.

        Args:
            problem: of this rank; None: it has none.
            place: this rank's host and device.
            conflict: finds a problem between ranks; called on rank 0.

        Raises:
            TimeoutError: some rank does not come.
        """
        rank, size = self._world.rank, self._world.size
        self.store.set(f"rank/{rank}", json.dumps([problem, *place]))
        if self._world.is_first:
            keys = [f"rank/{other}" for other in range(size)]
            self._wait(keys, self._end)
            said = [json.loads(self.store.get(key)) for key in keys]
            own = next(((k, str(text)) for k, (text, _, _) in enumerate(said) if text), None)
            self.store.set("verdict", json.dumps(own or conflict([(h, device) for _, h, device in said])))
        else:
            self._wait(["verdict"], self._end)
        verdict = json.loads(self.store.get("verdict"))
        if verdict is None:
            return None
        # The store ends with rank 0: not before all have read why.
        self.store.set(f"read/{rank}", "")
        if self._world.is_first:
            try:
                self._wait([f"read/{other}" for other in range(size)], time.monotonic() + _LEAVING_S)
            except TimeoutError:
                pass
        return verdict[0], verdict[1]

    def _wait(self, keys: list[str], end: float) -> None:
        pause = _POLL_S
        while not self.store.check(keys):
            if time.monotonic() > end:
                raise TimeoutError(self._absent(keys))
            time.sleep(pause)
            pause = min(0.5, 1.5 * pause)

    def _absent(self, keys: list[str]) -> str:
        if not self._world.is_first:
            return f"rank {self._world.rank}: not all ranks joined within {self._told}: rank 0 says which"
        absent = [key.partition("/")[2] for key in keys if not self.store.check([key])]
        named = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        return (
            f"{len(absent)} of {len(keys)} ranks did not join within {self._told}: look at the output of "
            f"rank {named}"
        )

    @property
    def _told(self) -> str:
        return f"training.timeout_s = {self._timeout_s:g} s"

    def _connect(self, holds: bool) -> Any:
        listening = _listen(self._port) if holds else None
        self._until_answered()
        made: list[Any] = []
        failed: list[RuntimeError] = []
        ended = threading.Event()

        def make() -> None:
            try:
                made.append(
                    dist.TCPStore(  # type: ignore[attr-defined]
                        self._host,
                        self._port,
                        self._world.size,
                        is_master=holds,
                        timeout=timedelta(seconds=self._timeout_s),
                        wait_for_workers=False,
                        master_listen_fd=listening,
                    )
                )
            except RuntimeError as error:
                failed.append(error)
            finally:
                ended.set()

        # In a thread: a service that is no store may accept the connection and never answer.
        try:
            threading.Thread(target=make, name="join", daemon=True).start()
            while not ended.wait(_POLL_S) and time.monotonic() < self._end:
                pass
        finally:
            # Python aborts when a thread comes back from C++ as the interpreter ends (seen after Ctrl-C).
            ended.wait(_FINISHING_S)
        if not made:
            said = str(failed[0]).strip().splitlines()[0] if failed else "no answer"
            raise TimeoutError(
                f"what listens at MASTER_ADDR, MASTER_PORT = {self._host}:{self._port} is not rank 0 of this "
                f"run ({said}): choose another MASTER_PORT"
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
                        f"rank {self._world.rank}: rank 0 does not listen at MASTER_ADDR, MASTER_PORT = "
                        f"{self._host}:{self._port} ({error.strerror or error}): waited {self._told}"
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
    """A listening socket's file descriptor."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        raise BadInput(
            f"MASTER_PORT={port}: cannot listen there on {socket.gethostname()}: {error.strerror}: choose a "
            "free port"
        ) from None
    return server.detach()
