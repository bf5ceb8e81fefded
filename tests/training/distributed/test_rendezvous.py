"""Ranks connect; failures to connect are one line, and Ctrl-C ends the wait at once."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import distributed as dist

from hpcphotoz.errors import BadInput
from hpcphotoz.training.distributed.rendezvous import Rendezvous
from hpcphotoz.world import World
from tests.helpers.launch.cluster import until
from tests.helpers.paths import ROOT
from tests.helpers.ranks import free_port
from tests.helpers.training.joins import JOIN, OPTIONS, ended, join

HOST = socket.gethostname()


def test_ranks_connect_in_any_order() -> None:
    port = free_port()
    late = join(1, 2, port, 60)
    assert late.stdout is not None and late.stdout.readline() == "joins\n"
    for status, out, errors in ended(join(0, 2, port, 60), late):
        assert (status, errors) == (0, []) and out.endswith("gloo 2\n")


@pytest.mark.parametrize("port", ["abc", "0", "70000", "-1"])
def test_an_invalid_port_is_refused(port: str) -> None:
    for rank in range(2):
        with pytest.raises(BadInput, match=f"MASTER_PORT={port}: is no port"):
            Rendezvous(World(rank, 2), 5, {"MASTER_ADDR": "localhost", "MASTER_PORT": port})


@pytest.mark.parametrize(
    ("name", "value", "other"), [("MASTER_ADDR", "n1", "MASTER_PORT"), ("MASTER_PORT", "abc", "MASTER_ADDR")]
)
@pytest.mark.parametrize("launcher", ["slurm", "mpich", "torchrun"])
def test_one_half_of_an_address_is_refused(name: str, value: str, other: str, launcher: str) -> None:
    with pytest.raises(BadInput, match=f"{name} is set and {other} is not: set both") as refused:
        Rendezvous(World(0, 2, launcher=launcher), 5, {name: value})
    assert ("or unset it" in str(refused.value)) == (launcher != "torchrun")


def test_an_unknown_host_is_refused() -> None:
    for rank in range(2):
        env = {"MASTER_ADDR": "no such host", "MASTER_PORT": str(free_port())}
        with pytest.raises(BadInput, match="MASTER_ADDR=no such host: no such host"):
            Rendezvous(World(rank, 2), 5, env)


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            BadInput, match=f"MASTER_PORT={port}: cannot listen.*in use.*: choose a free port"
        ):
            Rendezvous(World(0, 2), 5, {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})


def test_something_else_that_listens_is_a_lost_rank_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ((status, _, errors),) = ended(join(1, 2, server.getsockname()[1], 3))
    assert status == 1 and len(errors) == 1
    assert errors[0].startswith("RankLost: ") and "is not rank 0 of this run" in errors[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_timeout_is_one_line_that_names_the_absent(rank: int) -> None:
    ((status, _, errors),) = ended(join(rank, 3, free_port(), 2))
    assert status == 1 and len(errors) == 1 and "run.start_timeout_s = 2 s" in errors[0]
    assert ("look at the output of rank 1, 2" if rank == 0 else "rank 0 does not listen at") in errors[0]


@pytest.mark.slow
def test_a_rank_that_dies_before_it_connects_is_named() -> None:
    """gloo alone says that an interface might be the wrong one."""
    port = free_port()
    found = ended(join(0, 2, port, 5), join(1, 2, port, 5, DIES="1"))
    assert found[1][0] == 9 and found[0][0] == 1
    assert "the ranks did not come together: seen from " in found[0][2][-1]
    assert re.search(r"rank 1 on \S+ has ended: rank 0 on ", found[0][2][-1])


@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_is_heard_while_joining(rank: int) -> None:
    running = join(rank, 2, free_port(), 300)
    assert running.stdout is not None and running.stdout.readline() == "joins\n"
    if rank == 0:
        until("a listening socket", lambda: listens(running.pid), 30)
    running.send_signal(signal.SIGINT)
    start = time.monotonic()
    ((status, _, errors),) = ended(running)
    assert status in (1, -signal.SIGINT) and errors[-1] == "KeyboardInterrupt"
    assert time.monotonic() - start < 15, "it waited for the other rank"


def listens(pid: int) -> bool:
    """Whether a process has open sockets; it has none before it connects to the others."""
    return any(os.readlink(path).startswith("socket:") for path in Path(f"/proc/{pid}/fd").iterdir())


def test_two_ranks_that_share_a_gpu_end_before_they_start() -> None:
    """One says so, the other ends quietly with status 2."""
    port = free_port()
    results = ended(*(join(rank, 2, port, 60, gpu="GPU-1") for rank in range(2)))
    assert [errors for _, _, errors in results][0] == []
    assert [status for status, _, _ in results] == [2, 1]
    assert results[1][2] == [
        f"BadInput: ranks 0 and 1 on {socket.gethostname()} have the same GPU GPU-1: start one rank a GPU, "
        "or train on CPUs with --device cpu"
    ]


def test_a_rank_without_the_gpu_it_was_given_ends_all() -> None:
    port = free_port()
    results = ended(join(0, 2, port, 60), join(1, 2, port, 60, CUDA_VISIBLE_DEVICES="0"))
    assert [status for status, _, _ in results] == [2, 1]
    assert results[0][2] == [] and results[1][2][0].startswith("BadInput: a GPU was asked for")


def test_options_that_differ_are_named_by_the_rank_and_by_rank_0() -> None:
    port = free_port()
    line = (
        f"BadInput: rank 1 on {HOST} has --attack.eps 2, rank 0 on {HOST} at MASTER_ADDR, MASTER_PORT = "
        f"127.0.0.1:{port} has 1: give all ranks the same options"
    )
    for _, _, errors in ended(join(0, 2, port, 60), join(1, 2, port, 60, EPS="2")):
        assert errors == [line]


def test_another_version_of_the_code_is_refused_and_named() -> None:
    port = free_port()
    line = rf"BadInput: rank 1 on {HOST} has hpcphotoz 0\.0\.9, files \w{{12}}, rank 0 on {HOST} at .* has \d"
    for status, _, errors in ended(join(0, 2, port, 60), join(1, 2, port, 60, CODE="0.0.9")):
        assert status == 1 and len(errors) == 1 and re.match(line, errors[0])
        assert errors[0].endswith(": install the same on all hosts")


@pytest.mark.slow
def test_a_rank_of_another_run_is_refused_at_once() -> None:
    """Also when rank 0 does not wait for it, or waits for others."""
    port = free_port()
    first = join(0, 3, port, 60)
    try:
        for rank, size, name in ((3, 4, "number of ranks 4"), (1, 3, "--out b"), (2, 3, "--out b")):
            ((_, _, errors),) = ended(join(rank, size, port, 60, OUT="b"))
            line = f"BadInput: rank {rank} on {HOST} has {name}, rank 0 on "
            assert len(errors) == 1 and errors[0].startswith(line)
            assert "another run listens on this port: choose another" in errors[0]
        ((_, _, errors),) = ended(first)
        line = f"BadInput: rank 1 on {HOST} has --out b, rank 0 on {HOST} at "
        assert len(errors) == 1 and errors[0].startswith(line)
    finally:
        first.kill()


def test_under_torchrun_its_store_is_used(tmp_path: Path) -> None:
    """torchrun itself listens on MASTER_PORT."""
    text = JOIN.splitlines()
    text[text.index(OPTIONS)] = (
        "rank, size, timeout_s, gpu = int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), 60, ''"
    )
    (tmp_path / "join.py").write_text("\n".join(text))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*words, str(tmp_path / "join.py")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gloo 2") == 2


@pytest.mark.slow
def test_restarted_ranks_do_not_read_the_keys_of_those_before() -> None:
    """torchrun's store outlives the ranks. Each host counts its own restarts; here none does."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    for size, eps in ((3, "1"), (2, "2"), (2, "2")):
        given = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "EPS": eps}
        # The last rank starts first, and finds what those before have left.
        late = join(size - 1, size, store.port, 60, **given)
        assert late.stdout is not None and late.stdout.readline() == "joins\n"
        for status, out, errors in ended(
            *(join(k, size, store.port, 60, **given) for k in range(size - 1)), late
        ):
            assert (status, errors) == (0, []) and out.endswith(f"gloo {size}\n")


def test_a_rank_that_is_missing_after_a_restart_is_named() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    ((status, _, errors),) = ended(join(0, 3, store.port, 2, TORCHELASTIC_USE_AGENT_STORE="True"))
    assert status == 1 and len(errors) == 1
    assert (
        "2 of 3 ranks did not join within run.start_timeout_s = 2 s: look at the output of rank 1, 2"
        in errors[0]
    )
