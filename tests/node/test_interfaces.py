"""NCCL_SOCKET_IFNAME, in the syntax of NCCL."""

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.node.interfaces import nccl_interfaces

HAVE = ("lo", "ib0", "ib1", "eth0", "eth01")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", []),
        ("ib", ["ib0", "ib1"]),
        ("eth0", ["eth0", "eth01"]),
        ("=eth0", ["eth0"]),
        ("=eth0,ib1", ["ib1", "eth0"]),
        ("^lo,eth", ["ib0", "ib1"]),
        ("^=eth0", ["lo", "ib0", "ib1", "eth01"]),
    ],
)
def test_interfaces_that_nccl_may_use(value: str, found: list[str]) -> None:
    assert nccl_interfaces({"NCCL_SOCKET_IFNAME": value}, HAVE) == found


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hsn", "matches no network interface of .*: it has ib0, ib1, eth0, eth01"),
        ("=ib", "matches no network interface"),
        ("^lo,ib,eth", "excludes every network interface"),
        ("^", "names no network interface"),
        ("=,", "names no network interface"),
    ],
)
def test_a_value_that_leaves_none_is_one_line(value: str, reason: str) -> None:
    with pytest.raises(BadInput, match=rf"^NCCL_SOCKET_IFNAME=.*{reason}"):
        nccl_interfaces({"NCCL_SOCKET_IFNAME": value}, HAVE)
