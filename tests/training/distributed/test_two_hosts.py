"""Two hosts with a network of their own between them, as network namespaces of this machine."""

import os
import re
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
from tests.helpers.training.hosts import ADDRESSES, CABLE, IDLE, IDLE_ADDRESS, Host, TwoHosts, end_of, missing
from tests.helpers.training.joins import JOIN
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config

Process = subprocess.Popen[bytes]

# Options of torchrun, as docs/how-to/torchrun.md has them, but for the number of ranks a host.
STATIC = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "node0", "--master-port", "29500"]
ELASTIC = ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", "node0:29500"]
ELASTIC += ["--rdzv-id", "e", "--rdzv-conf", "last_call_timeout=10"]
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
TIMEOUT_S = 30.0  # run.timeout_s: two hosts of two ranks have started within 12 s on two busy cores
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


def torchrun(host: Host, options: Sequence[str], words: Sequence[str], **env: str) -> Process:
    given = [*options, "-m", "hpcphotoz", *words, "--device", "cpu"]
    return host.start([sys.executable, "-m", "torch.distributed.run", *given], **env)


def static(hosts: Sequence[Host], words: Sequence[str], *more: str) -> list[Process]:
    """One rank a host, whose number torchrun is told."""
    numbers = [["--node-rank", str(number)] for number in range(len(hosts))]
    return [
        torchrun(host, [*STATIC, *number, *more], words) for host, number in zip(hosts, numbers, strict=True)
    ]


def elastic(hosts: Sequence[Host], words: Sequence[str], nodes: str, per_node: int = 1) -> list[Process]:
    """Ranks of as many hosts as come."""
    options = ["--nnodes", nodes, "--nproc-per-node", str(per_node), *ELASTIC]
    return [torchrun(host, options, words, **OWN_STORE) for host in hosts]


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
            chosen = f"gloo uses the network interface {CABLE} ({host.address})"
            assert (
                f"hpcphotoz: {host.name}: the name of this host stands for a loopback address: {chosen}"
                in host.said()
            )
    assert_same_curve(out, alone, SAME)
    assert [start["world_size"] for start in starts(out)] == [2]


@pytest.mark.slow
def test_a_cut_link_ends_all_ranks_and_the_same_command_resumes(
    hosts: list[Host], one_rank: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, timeout_s=TIMEOUT_S, start_timeout_s=TIMEOUT_S, **LONG)
    running = static(hosts, words)
    logged(out, 8, hosts, running)
    hosts[1].cut()
    assert end_of(running, TIMEOUT_S + MARGIN_S) == [1, 1], said(hosts)
    for number, host in enumerate(hosts):
        assert not host.ranks()
        (line,) = [line for line in host.said().splitlines() if line.startswith("hpcphotoz: error: ")]
        other = 1 - number
        assert f"(rank {number}) at step " in line and "the same command resumes" in line
        lost = rf": seen from node{number}, rank {other} on node{other} cannot be reached"
        assert re.search(lost + r"( \(last seen [^)]*\))?: ", line), line
    hosts[1].plug()
    assert end_of(static(hosts, words), ranks.TIMEOUT_S) == [0, 0], said(hosts)
    assert_same_curve(out, one_rank, SAME)
    assert starts(out)[1]["step"] > 0, "from a checkpoint, not anew"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("static", signal.SIGKILL),
        ("elastic", signal.SIGKILL),
        # torchrun of its host learns of it from that of the other host, and kills it after 30 s
        ("elastic", signal.SIGSTOP),
    ],
)
def test_a_lost_rank_is_brought_back(
    kind: str, number: signal.Signals, hosts: list[Host], one_rank: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, timeout_s=TIMEOUT_S, start_timeout_s=TIMEOUT_S, **LONG)
    more = ["--max-restarts", "3"]
    running = static(hosts, words, *more) if kind == "static" else elastic(hosts, words, "2")
    logged(out, 8, hosts, running)
    (rank,) = hosts[1].ranks()
    os.kill(rank, number)
    assert end_of(running, TIMEOUT_S + ranks.TIMEOUT_S) == [0, 0], said(hosts)
    assert_same_curve(out, one_rank, SAME)
    assert [start["world_size"] for start in starts(out)] == [2, 2]
    assert starts(out)[1]["step"] > 0, "from a checkpoint, not anew"


@pytest.mark.slow
def test_the_others_go_on_without_a_dead_host(
    hosts: list[Host], one_rank: Path, dataset: Path, tmp_path: Path
) -> None:
    """Every object exactly once an epoch: a step without one, or with one twice, changes the loss by 1e-2."""
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, timeout_s=TIMEOUT_S, start_timeout_s=TIMEOUT_S, **LONG)
    running = elastic(hosts, words, "1:2", per_node=2)
    logged(out, 8, hosts, running)
    hosts[1].lose_power()
    assert end_of(running[:1], TIMEOUT_S + ranks.TIMEOUT_S) == [0], said(hosts)
    assert_same_curve(out, one_rank, SAME)
    assert [start["world_size"] for start in starts(out)] == [4, 2]
    assert starts(out)[1]["step"] > 0, "from a checkpoint, not anew"


@pytest.mark.slow
def test_a_host_that_returns_is_taken_in(hosts: list[Host], dataset: Path, tmp_path: Path) -> None:
    """The ranks of the other host save and stop for it, and no step is lost or written twice."""
    out = tmp_path / "run"
    words = arguments(
        dataset,
        out,
        tmp_path,
        timeout_s=TIMEOUT_S,
        start_timeout_s=TIMEOUT_S,
        epochs=4000,
        checkpoint_steps=5,
    )
    running = elastic(hosts, words, "1:2")[:1]
    logged(out, 8, hosts, running)
    hosts[1].lose_power()
    until("a start without it", lambda: len(starts(out)) == 2, TIMEOUT_S + ranks.TIMEOUT_S)
    logged(out, len(ranks.curve(out)) + 5, hosts, running)
    hosts[1].plug()
    elastic(hosts[1:], words, "1:2")
    until("a start with it", lambda: len(starts(out)) == 3, ranks.TIMEOUT_S)
    logged(out, len(ranks.curve(out)) + 5, hosts, running)
    written = [step for step, _ in ranks.curve(out)]
    assert written == list(range(1, len(written) + 1))
    assert [start["world_size"] for start in starts(out)] == [2, 1, 2]
    assert "SIGTERM received: saved and stopped after step" in hosts[0].said()
    assert 0 < starts(out)[1]["step"] < starts(out)[2]["step"], "from checkpoints, not anew"


def join(host: Host, rank: int, size: int, timeout_s: int, **env: str) -> Process:
    where = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    return host.start([sys.executable, "-c", JOIN, str(rank), str(size), str(timeout_s), ""], **where, **env)


@pytest.mark.slow
def test_a_link_that_is_cut_while_ranks_meet_ends_them(hosts: list[Host]) -> None:
    """Rank 2 of three is absent. On a cut link, torch's store itself waits for a quarter of an hour."""
    running = [join(host, rank, 3, 20) for rank, host in enumerate(hosts)]

    seen: list[list[str]] = []

    def connected() -> bool:
        assert running[1].poll() is None, said(hosts)
        tables = [Path(f"/proc/{running[1].pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
        lines = [line.split() for table in tables for line in table.splitlines()]
        seen.extend(line for line in lines if line[2].endswith(f":{29500:04X}") and line[3] == "01")
        return len(seen) > 2  # a first connection only asks whether anything listens

    until("a connection to the store", connected, ranks.TIMEOUT_S)
    hosts[1].cut()
    assert end_of(running, 20 + MARGIN_S) == [1, 1], said(hosts)
    lines = [[line for line in host.said().splitlines() if line.startswith("RankLost: ")] for host in hosts]
    assert [len(each) for each in lines] == [1, 1], said(hosts)
    assert "did not join within run.start_timeout_s = 20 s: look at the output of rank " in lines[0][0]
    assert "rank 1 on node1: the store at MASTER_ADDR, MASTER_PORT = node0:29500 no longer" in lines[1][0]


@pytest.mark.slow
def test_a_wrong_interface_is_one_line_that_names_the_host(hosts: list[Host]) -> None:
    """gloo itself waits on one side for five times the timeout."""
    given = [{"GLOO_SOCKET_IFNAME": interface} for interface in (CABLE, IDLE)]
    running = [join(host, rank, 2, 10, **given[rank]) for rank, host in enumerate(hosts)]
    assert end_of(running, 10 + MARGIN_S) == [1, 1], said(hosts)
    for rank, host in enumerate(hosts):
        (line,) = [line for line in host.said().splitlines() if line.startswith("RankLost: ")]
        assert f"rank {rank} on node{rank} cannot connect to another rank (" in line
        where = f"gloo listens at {ADDRESSES[0]} on node0, {IDLE_ADDRESS} on node1"
        assert f"{where}: on every host, set GLOO_SOCKET_IFNAME to the network interface towards" in line
