"""Two hosts with a network of their own between them, as network namespaces of this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.launch.cluster import until
from tests.helpers.launch.runs import starts
from tests.helpers.training.hosts import ADDRESSES, IDLE, IDLE_ADDRESS, Host, TwoHosts, end_of, missing
from tests.helpers.training.joins import JOIN
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config

Process = subprocess.Popen[bytes]

# Options of torchrun, as docs/how-to/torchrun.md has them, but for the number of ranks a host.
STATIC = ["--nnodes", "2", "--master-addr", "node0", "--master-port", "29500"]
ELASTIC = ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", "node0:29500"]
ELASTIC += ["--rdzv-id", "e", "--rdzv-conf", "last_call_timeout=10"]
TIMEOUT_S = 20.0  # run.timeout_s: two hosts of two ranks have started within 12 s on two busy cores
MARGIN_S = 40.0  # beyond it: the end of torchrun, on busy cores
LONG = {"epochs": 12}  # 60 steps of 15 ms: a test acts after the eighth


@pytest.fixture(scope="module")
def reason() -> str:
    """Why there are no two hosts; fails with HPCPHOTOZ_REQUIRE_NETNS=1 where there are none."""
    why = missing()
    if why and os.environ.get("HPCPHOTOZ_REQUIRE_NETNS") == "1":
        pytest.fail(f"no two hosts, though HPCPHOTOZ_REQUIRE_NETNS=1: {why}")
    return why


@pytest.fixture
def hosts(reason: str, tmp_path: Path) -> Iterator[list[Host]]:
    """node0 and node1, which know each other by name."""
    if reason:
        pytest.skip(f"no two hosts: {reason}")
    with TwoHosts(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def one_rank(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `LONG` on one rank, without interruption."""
    out = tmp_path_factory.mktemp("runs") / "one rank"
    assert train(config(**LONG), dataset, out) is Outcome.FINISHED
    return out


def torchrun(host: Host, options: Sequence[str], words: Sequence[str], per_node: int = 1) -> Process:
    given = [*options, "--nproc-per-node", str(per_node), "-m", "hpcphotoz", *words, "--device", "cpu"]
    return host.start([sys.executable, "-m", "torch.distributed.run", *given])


def static(hosts: Sequence[Host], words: Sequence[str], *more: str) -> list[Process]:
    return [
        torchrun(host, [*STATIC, "--node-rank", str(number), *more], words)
        for number, host in enumerate(hosts)
    ]


def said(hosts: Sequence[Host]) -> str:
    return "\n".join(f"{host.name}:\n{host.said()}" for host in hosts)


def logged(out: Path, steps: int, hosts: Sequence[Host], running: Sequence[Process]) -> None:
    """Wait for lines of metrics; fails when torchrun ends first."""

    def probe() -> bool:
        assert all(each.poll() is None for each in running), said(hosts)
        return len(ranks.curve(out)) >= steps

    until(f"{steps} steps", probe, ranks.TIMEOUT_S)


def test_two_hosts_train_as_one(reason: str, alone: Path, dataset: Path, tmp_path: Path) -> None:
    """Each takes its own name for 127.0.1.1, as Debian's installer has it."""
    if reason:
        pytest.skip(f"no two hosts: {reason}")
    out = tmp_path / "run"
    with TwoHosts(tmp_path, loopback_names=True) as hosts:
        running = static(hosts, arguments(dataset, out, tmp_path))
        assert end_of(running, ranks.TIMEOUT_S) == [0, 0], said(hosts)
        for host in hosts:
            chosen = f"gloo uses the network interface cable0 ({host.address})"
            assert (
                f"hpcphotoz: {host.name}: the name of this host stands for a loopback address: {chosen}"
                in host.said()
            )
    assert_same_curve(out, alone, SAME)
    assert [start["world_size"] for start in starts(out)] == [2]


def test_a_cut_link_ends_all_ranks_and_the_same_command_resumes(
    hosts: list[Host], one_rank: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, timeout_s=TIMEOUT_S, **LONG)
    running = static(hosts, words)
    logged(out, 8, hosts, running)
    hosts[1].cut()
    assert end_of(running, TIMEOUT_S + MARGIN_S) == [1, 1], said(hosts)
    for number, host in enumerate(hosts):
        assert not host.ranks()
        (line,) = [line for line in host.said().splitlines() if line.startswith("hpcphotoz: error: ")]
        assert f"rank {1 - number}" in line and "the same command resumes" in line
    hosts[1].plug()
    assert end_of(static(hosts, words), ranks.TIMEOUT_S) == [0, 0], said(hosts)
    assert_same_curve(out, one_rank, SAME)
    assert starts(out)[1]["step"] >= 6, "from a checkpoint, not anew"


@pytest.mark.parametrize("kind", ["static", pytest.param("elastic", marks=pytest.mark.slow)])
def test_a_killed_rank_is_brought_back(
    kind: str, hosts: list[Host], one_rank: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, timeout_s=TIMEOUT_S, **LONG)
    if kind == "static":
        running = static(hosts, words, "--max-restarts", "3")
    else:
        running = [torchrun(host, ["--nnodes", "2", *ELASTIC], words) for host in hosts]
    logged(out, 8, hosts, running)
    (rank,) = hosts[1].ranks()
    os.kill(rank, signal.SIGKILL)
    assert end_of(running, ranks.TIMEOUT_S) == [0, 0], said(hosts)
    assert_same_curve(out, one_rank, SAME)
    assert [start["world_size"] for start in starts(out)] == [2, 2]
    assert starts(out)[1]["step"] >= 6, "from a checkpoint, not anew"


def test_the_others_go_on_without_a_dead_host(
    hosts: list[Host], one_rank: Path, dataset: Path, tmp_path: Path
) -> None:
    """Every object exactly once an epoch: a step without one, or with one twice, changes the loss by 1e-2."""
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, timeout_s=TIMEOUT_S, **LONG)
    running = [torchrun(host, ["--nnodes", "1:2", *ELASTIC], words, per_node=2) for host in hosts]
    logged(out, 8, hosts, running)
    hosts[1].lose_power()
    assert end_of(running[:1], TIMEOUT_S + ranks.TIMEOUT_S) == [0], said(hosts)
    assert_same_curve(out, one_rank, SAME)
    assert [start["world_size"] for start in starts(out)] == [4, 2]
    assert starts(out)[1]["step"] >= 6, "from a checkpoint, not anew"


def test_a_wrong_interface_is_one_line_that_names_the_host(hosts: list[Host]) -> None:
    """gloo itself waits on one side for five times the timeout."""
    wanted = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "cable0"}
    own = [{}, {"GLOO_SOCKET_IFNAME": IDLE}]
    running = [
        host.start([sys.executable, "-c", JOIN, str(rank), "2", "10", ""], **{**wanted, **own[rank]})
        for rank, host in enumerate(hosts)
    ]
    assert end_of(running, 10 + MARGIN_S) == [1, 1], said(hosts)
    for rank, host in enumerate(hosts):
        (line,) = [line for line in host.said().splitlines() if line.startswith("RankLost: ")]
        assert f"rank {rank} on node{rank} cannot connect to another rank (" in line
        where = f"gloo listens at {ADDRESSES[0]} on node0, {IDLE_ADDRESS} on node1"
        assert f"{where}: on every host, set GLOO_SOCKET_IFNAME to the network interface towards" in line
