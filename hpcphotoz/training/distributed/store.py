"""The key-value store at MASTER_ADDR:MASTER_PORT in which ranks meet; rank 0 or torchrun holds it.

Nothing here waits inside torch, because Python handles no signal during such a wait: Ctrl-C took up to the
timeout to work. On a cut link some calls of the store wait for many minutes, whatever its timeout.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from torch import distributed as dist

from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.node.address import step_address
from hpcphotoz.sources.mpi import gather_once
from hpcphotoz.world import MPI, World, started_by_srun

T = TypeVar("T")
POLL_S = 0.05
_FINISHING_S = 1.0
_LOOPBACK = "127.0.0.1"


class Connection(NamedTuple):
    """A connection to the store."""

    store: Any
    where: str  # its address, for messages
    own_address: str  # of this host, on the network to the store
    store_address: str  # of the host of the store, seen from here
    outlives_ranks: bool  # torchrun's store exists before the ranks, and keeps their keys after a restart


def in_thread(
    call: Callable[[threading.Event], T], end: float, meanwhile: Callable[[], None] = lambda: None
) -> T:
    """Result of a call that may wait inside torch; made in a thread, so that Ctrl-C is handled meanwhile.

    Args:
        call: is given an event that is set when nobody waits for it any more.
        end: time.monotonic() until which it is waited for.
        meanwhile: called every 50 ms.

    Raises:
        TimeoutError: the call has not ended in time; without a message.
        Exception: what `call` or `meanwhile` raises.
    """
    made: list[T] = []
    failed: list[Exception] = []
    ended, abandoned = threading.Event(), threading.Event()

    def make() -> None:
        try:
            made.append(call(abandoned))
        except Exception as error:  # raised again by the thread that waits
            failed.append(error)
        finally:
            ended.set()

    try:
        threading.Thread(target=make, name="join", daemon=True).start()
        while not ended.wait(POLL_S) and time.monotonic() < end:
            meanwhile()
    finally:
        abandoned.set()
        # Python aborts if a thread returns from C++ while the interpreter ends (seen after Ctrl-C).
        ended.wait(_FINISHING_S)
    if failed:
        raise failed[0]
    if not made:
        raise TimeoutError
    return made[0]


def connect(world: World, timeout_s: float, env: Mapping[str, str] | None = None) -> Connection:
    """Connect to the store; rank 0 makes it, unless torchrun has.

    Args:
        world: this rank's place among at least two ranks.
        timeout_s: seconds in which the store must answer.
        env: environment with MASTER_ADDR and MASTER_PORT, or of an MPI or SLURM that tells where; the
            process's own by default.

    Raises:
        BadInput: no address, or one that cannot be used.
        TimeoutError: nobody answers there.
    """
    env = os.environ if env is None else env
    end = time.monotonic() + timeout_s
    held = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holds = world.is_first and not held
    told = env.get("MASTER_ADDR") or env.get("MASTER_PORT")
    if not told and started_by_srun(world, env):
        host, port = step_address(env)
        where = f"{host}:{port}, the first node of this SLURM step,"
        listening = _listen(port) if holds else None
    elif not told and world.launcher in MPI:
        listening = _listen(0) if holds else None
        host, port = _address_by_mpi(listening, end)
        where = f"{host}:{port}, as told by MPI,"
    else:
        host, port = _address(world, env)
        where = f"MASTER_ADDR, MASTER_PORT = {host}:{port}"
        listening = _listen(port) if holds else None
    own_address, store_address = _until_answered(world, host, port, end, where, timeout_s)

    def make(_: threading.Event) -> Any:
        how: dict[str, Any] = {"is_master": holds, "wait_for_workers": False}
        how |= {"master_listen_fd": listening, "timeout": timedelta(seconds=timeout_s)}
        return dist.TCPStore(host, port, world.size, **how)  # type: ignore[attr-defined]

    # In a thread, because a service that is not a store may accept the connection and never answer.
    try:
        return Connection(in_thread(make, end), where, own_address, store_address, held)
    except (TimeoutError, RuntimeError) as error:
        raise TimeoutError(
            f"what listens at {where} is not rank 0 of this run ({first_line(error) or 'no answer'}): "
            "choose another MASTER_PORT"
        ) from None


def _until_answered(
    world: World, host: str, port: int, end: float, where: str, timeout_s: float
) -> tuple[str, str]:
    """Wait until something listens; returns the addresses of both ends of a connection, the own first."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=1) as connection:
                return str(connection.getsockname()[0]), str(connection.getpeername()[0])
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
                raise BadInput(f"MASTER_ADDR={host}: no such host") from None
            if time.monotonic() > end:
                if world.is_first:
                    raise TimeoutError(
                        f"rank 0 does not reach itself at {where} ({error.strerror or error}): waited "
                        f"run.start_timeout_s = {timeout_s:g} s: MASTER_ADDR is to be rank 0's own host"
                    ) from None
                raise TimeoutError(
                    f"rank {world.rank}: rank 0 does not listen at {where} "
                    f"({error.strerror or error}): waited run.start_timeout_s = {timeout_s:g} s"
                ) from None
        time.sleep(4 * POLL_S)


def _address_by_mpi(listening: int | None, end: float) -> tuple[str, int]:
    """Where rank 0 listens: it tells the others by MPI, which the run does not use otherwise.

    Args:
        listening: descriptor of rank 0's listening socket; None: another rank.
        end: time.monotonic() until which the ranks must have met.

    Raises:
        BadInput: mpi4py is absent, or does not see the launcher's ranks.
        TimeoutError: not all ranks have called this in time.
    """
    port = None
    if listening is not None:
        with socket.socket(fileno=os.dup(listening)) as listener:
            port = listener.getsockname()[1]
    try:
        told = in_thread(lambda _: gather_once((socket.gethostname(), port)), end)
    except BadInput as error:
        raise BadInput(
            f"MASTER_ADDR and MASTER_PORT are not set, and MPI cannot tell them: {error}"
        ) from None
    except TimeoutError:
        raise TimeoutError("not all ranks have met by MPI") from None
    host, first_port = told[0]
    assert first_port is not None
    # On one host by the address that is always there: a laptop's own name often does not resolve.
    return host if any(other != host for other, _ in told) else _LOOPBACK, first_port


def _address(world: World, env: Mapping[str, str]) -> tuple[str, int]:
    names = ("MASTER_ADDR", "MASTER_PORT")
    there = [name for name in names if env.get(name)]
    if len(there) == 1:
        (other,) = set(names) - set(there)
        unset = ", or unset it: the ranks then find each other" if world.launcher in (*MPI, "slurm") else ""
        raise BadInput(f"{there[0]} is set and {other} is not: set both{unset}")
    if not there:
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
