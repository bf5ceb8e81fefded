"""The network interface of gloo: a host's name may stand for an address that other hosts cannot reach."""

import socket
import threading
import time

import pytest
from torch import distributed as dist

from hpcphotoz.errors import BadInput
from hpcphotoz.training.distributed import gloo
from hpcphotoz.training.distributed.gloo import Place, find_peers, listening_address
from hpcphotoz.training.distributed.store import in_thread
from hpcphotoz.world import World


def place(host: str, listens_at: str, own_address: str = "127.0.0.1", asked: bool = False) -> Place:
    return Place(host, listens_at, own_address, asked)


@pytest.mark.parametrize(
    ("places", "peers"),
    [
        # one host: loopback is right
        ([place("a", "127.0.1.1"), place("a", "127.0.1.1")], {}),
        # names with addresses of the network, IPv4 or IPv6
        ([place("a", "10.0.0.1", "10.0.0.1"), place("b", "fd00::2", "10.0.0.2")], {}),
        # Debian's installer, on both: rank 0 reaches its own store over loopback
        (
            [place("a", "127.0.1.1"), place("b", "127.0.1.1", "10.0.0.2")],
            {"a": "10.0.0.2", "b": "10.0.0.2"},
        ),
        (
            [place("a", "::1", "10.0.0.1"), place("a", "::1", "10.0.0.1"), place("b", "10.0.0.2")],
            {"a": "10.0.0.1"},
        ),
        # a GPU needs no gloo
        ([place("a", ""), place("b", "")], {}),
    ],
)
def test_hosts_that_would_listen_in_vain_are_given_an_address(
    places: list[Place], peers: dict[str, str]
) -> None:
    assert find_peers(places) == peers


def test_hosts_that_nothing_connects_are_refused() -> None:
    """As where both reach the store through tunnels."""
    places = [place("a", "10.0.0.1"), place("b", "127.0.1.1")]
    with pytest.raises(
        BadInput, match="rank 1 on b: gloo would listen at 127.0.1.1, which a cannot reach: on "
    ):
        find_peers(places)


def test_an_interface_that_others_cannot_reach_is_refused_where_it_was_asked_for() -> None:
    places = [place("a", "10.0.0.1", "10.0.0.1"), place("b", "127.0.0.1", "10.0.0.2", asked=True)]
    with pytest.raises(BadInput, match="rank 1 on b: asked by GLOO_SOCKET_IFNAME, gloo would listen at 127"):
        find_peers(places)


def test_the_listening_address_is_that_of_the_interface_or_of_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert listening_address({"GLOO_SOCKET_IFNAME": "lo"}) == "127.0.0.1"
    with pytest.raises(BadInput, match="GLOO_SOCKET_IFNAME=nope: .* has no network interface nope: it has "):
        listening_address({"GLOO_SOCKET_IFNAME": "nope"})
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert listening_address({}) in ("127.0.0.1", "::1")
    monkeypatch.setattr(socket, "gethostname", lambda: "no such host")
    assert listening_address({}) == "127.0.0.1", "as gloo does"


def test_a_rank_that_cannot_connect_is_one_line_with_the_other_rank() -> None:
    """Rank 1 listens where nobody does: gloo itself gives up after five times the timeout."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    start = time.monotonic()
    with pytest.raises(
        TimeoutError, match="rank 0 on .* cannot connect .*: gloo listens at 10.0.0.1 on a: on e"
    ):
        gloo.connect(store, World(0, 2), 1, gloo.listeners([place("a", "10.0.0.1")] * 2))
    assert time.monotonic() - start < 5


def test_a_call_that_does_not_return_is_left_after_its_time() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError):
        in_thread(lambda abandoned: never.wait(60), time.monotonic() + 0.2)
    with pytest.raises(ValueError, match="no"):
        in_thread(lambda abandoned: int("no"), time.monotonic() + 60)
    assert in_thread(lambda abandoned: abandoned.is_set(), time.monotonic() + 60) is False
