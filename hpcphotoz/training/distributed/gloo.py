"""The network interface of gloo, which connects ranks on CPUs, and the connection itself.

gloo listens at the interface in GLOO_SOCKET_IFNAME, else at the address of the host's name. Debian's
installer gives that name the address 127.0.1.1, which other hosts cannot reach: one rank failed, and the
others waited for five times the timeout.
"""

import fcntl
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from torch import distributed as dist

from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.node.interfaces import interface_names, named
from hpcphotoz.output import say
from hpcphotoz.training.distributed.presence import is_loopback
from hpcphotoz.training.distributed.store import in_thread
from hpcphotoz.world import World

VARIABLE = "GLOO_SOCKET_IFNAME"
_LOOPBACK = "127.0.0.1"
_ADVICE = f"on every host, set {VARIABLE} to the network interface towards the others (`ip -brief address`)"
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


class Place(NamedTuple):
    """Where a rank runs, and its addresses."""

    host: str
    listens_at: str  # address at which gloo will listen; "": unknown, or the ranks do not use gloo
    own_address: str  # of the host, on the network to the store
    asked: bool  # whether GLOO_SOCKET_IFNAME is set


def listening_address(env: Mapping[str, str] | None = None) -> str:
    """The address at which gloo will listen on this host; "": an interface whose address is not known.

    Args:
        env: environment with GLOO_SOCKET_IFNAME; the process's own by default.

    Raises:
        BadInput: GLOO_SOCKET_IFNAME names an interface that this host does not have.
    """
    names = (os.environ if env is None else env).get(VARIABLE, "")
    host = socket.gethostname()
    if not names:
        return _address_of_name(host)
    have = interface_names()
    for name in names.split(","):
        if name not in have:
            raise BadInput(
                f"{VARIABLE}={names}: {host} has no network interface {name}: it has {named(have)}"
            )
    return _address_of_interface(names.split(",")[0]) or ""


def find_peers(places: Sequence[Place]) -> dict[str, str]:
    """Of every host where gloo would listen in vain, an address on the network between the hosts.

    Args:
        places: of all ranks, in order.

    Returns:
        By name of a host whose ranks would listen at a loopback address, although there are other hosts: its
        own address, or else that of another.

    Raises:
        BadInput: GLOO_SOCKET_IFNAME asks for it, or nothing tells how another host is reached.
    """
    found = dict[str, str]()
    for rank, place in enumerate(places):
        if place.host in found or not is_loopback(place.listens_at):
            continue
        others = [other for other in places if other.host != place.host]
        if not others:
            break
        addresses = [each.own_address for each in (place, *others)]
        peer = next((address for address in addresses if not is_loopback(address)), None)
        if peer is None or place.asked:
            asked = f"asked by {VARIABLE}, " if place.asked else ""
            at = f"rank {rank} on {place.host}: {asked}gloo would listen at {place.listens_at}"
            raise BadInput(f"{at}, which {others[0].host} cannot reach: {_ADVICE}")
        found[place.host] = peer
    return found


def listeners(places: Sequence[Place]) -> str:
    """Where gloo listens on the first eight hosts, as in "10.0.0.1 on node0, 10.0.0.2 on node1"."""
    at = {place.host: place.listens_at for place in reversed(places)}
    named = [f"{address or 'an unknown address'} on {host}" for host, address in reversed(at.items())]
    return ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")


def choose_interface(peer: str, speaks: bool) -> None:
    """Set GLOO_SOCKET_IFNAME to the interface from which this host reaches an address.

    The rank that `speaks` tells the user.
    """
    host = socket.gethostname()
    own = _source_address(peer)
    name = next((name for name in interface_names() if _address_of_interface(name) == own), None)
    at = f"hpcphotoz: {host}: the name of this host stands for a loopback address"
    if own is None or name is None or is_loopback(own):
        say(f"{at}, and no network interface towards {peer} is found: {_ADVICE}", sys.stderr)
        return
    if speaks:
        say(f"{at}: gloo uses the network interface {name} ({own})", sys.stderr)
    os.environ[VARIABLE] = name


def connect(store: Any, world: World, timeout_s: float, listen: str) -> None:
    """Make the default process group.

    Args:
        store: of this start alone.
        world: this rank's place among all ranks.
        timeout_s: seconds of every wait, also of this one.
        listen: `listeners`, for messages.

    Raises:
        TimeoutError: a rank cannot connect to another.
    """

    def make(_: threading.Event) -> None:
        wait = timedelta(seconds=timeout_s)
        dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size, timeout=wait)

    try:
        # In a thread: where the other side has given up, gloo waits for five times its timeout.
        in_thread(make, time.monotonic() + timeout_s)
    except (RuntimeError, TimeoutError) as error:
        said = first_line(error) or f"waited run.start_timeout_s = {timeout_s:g} s"
        raise TimeoutError(
            f"rank {world.rank} on {socket.gethostname()} cannot connect to another rank ({said}): gloo "
            f"listens at {listen}: {_ADVICE}"
        ) from None


def _address_of_name(host: str) -> str:
    """As gloo: the first address of the name that can be listened at, else loopback."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return _LOOPBACK
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError:
            continue
        return str(address[0])
    return _LOOPBACK


def _address_of_interface(name: str) -> str | None:
    """The IPv4 address of an interface; None: it has none, or this is not Linux."""
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def _source_address(peer: str) -> str | None:
    """This host's address on the way to another; nothing is sent."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None
