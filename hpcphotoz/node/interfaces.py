"""The network interfaces that NCCL may use."""

import os
import socket
from collections.abc import Mapping, Sequence

from hpcphotoz.errors import BadInput

VARIABLE = "NCCL_SOCKET_IFNAME"


def interface_names() -> list[str]:
    """Names of this host's network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def named(names: Sequence[str]) -> str:
    """The interfaces towards other hosts, for a message."""
    return ", ".join(name for name in names if name != "lo") or "none but lo"


def nccl_interfaces(env: Mapping[str, str] | None = None, have: Sequence[str] | None = None) -> list[str]:
    """The interfaces among which NCCL_SOCKET_IFNAME lets NCCL choose; empty: it is not set.

    NCCL's syntax: names divided by commas, each the beginning of a name; a "=" in front of all asks for the
    whole name, a "^" excludes them.

    Args:
        env: environment to read; the process's own by default.
        have: names of this host's interfaces; asked from the system by default.

    Raises:
        BadInput: no interface of this host is left, or the value names none.
    """
    value = (os.environ if env is None else env).get(VARIABLE, "")
    if not value:
        return []
    have = interface_names() if have is None else have
    excluded = value.startswith("^")
    exact = value.removeprefix("^").startswith("=")
    wanted = [name for name in value.removeprefix("^").removeprefix("=").split(",") if name]
    if not wanted:
        raise BadInput(f"{VARIABLE}={value}: names no network interface: this host has {named(have)}")

    def matches(name: str) -> bool:
        return any(name == each if exact else name.startswith(each) for each in wanted)

    found = [name for name in have if matches(name) != excluded]
    if not found:
        how = "excludes every network interface of" if excluded else "matches no network interface of"
        raise BadInput(f"{VARIABLE}={value}: {how} {socket.gethostname()}: it has {named(have)}")
    return found
