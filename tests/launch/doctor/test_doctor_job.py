"""The doctor on a real Slurm of two nodes finds what is planted there, passes a sound one, and cleans up."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.launch.doctor import job
from hpcphotoz.launch.doctor.examination import examine
from hpcphotoz.launch.request.plan import LaunchPlan
from tests.helpers.launch.cluster import Cluster, missing, until

# The two nodes are one host, whose name stands for 127.0.0.1 on some machines.
OF_THE_MACHINE = {
    "host name",
    "shared memory",
    "open files",
    "locked memory",
    "file speed",
    "gloo",
    "free space",
}


def cluster_or_skip(preempt_signal: bool) -> Iterator[Cluster]:
    if reason := missing():
        if os.environ.get("HPCPHOTOZ_REQUIRE_SLURM") == "1":
            pytest.fail(f"no Slurm, though HPCPHOTOZ_REQUIRE_SLURM=1: {reason}")
        pytest.skip(f"no Slurm: {reason}")
    with Cluster(preempt_signal) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from cluster_or_skip(preempt_signal=True)


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the doctor in a folder of its own; returns the exit status and its findings by check."""

    def run(*words: str) -> tuple[int, dict[str, dict[str, str]]]:
        folder = tmp_path / "runs and data"
        folder.mkdir(exist_ok=True)
        status = main(["launch", "doctor", "--folder", str(folder), "--json", *words])
        assert list(folder.iterdir()) == []  # cleaned up
        found = json.loads(capsys.readouterr().out)["findings"]
        worst: dict[str, dict[str, str]] = {}
        order = ("ok", "info", "warning", "problem")
        for each in found:
            known = worst.setdefault(each["name"], each)
            if order.index(each["level"]) > order.index(known["level"]):
                worst[each["name"]] = each
        return status, worst

    return run


def bad(found: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, each in found.items() if each["level"] in ("warning", "problem")} - OF_THE_MACHINE


@pytest.mark.slow
def test_two_sound_nodes_pass(cluster: Cluster, doctor: Any) -> None:
    status, found = doctor()
    # The fixture leaves jobs 60 s at a preemption, and 10 s after SIGTERM.
    assert status == 0 and bad(found) == {"grace time", "kill wait"}
    assert found["preemption signal"]["level"] == "ok"
    assert "GB/s" in found["gloo"]["text"] and found["job"]["text"].endswith("ran on n1, n2")
    assert found["hdf5"]["where"] == found["rename"]["where"] == found["file locking"]["where"] == "n1, n2"
    assert cluster.command("squeue", "--noheader") == ""


@pytest.mark.slow
def test_what_is_planted_on_the_nodes_is_found(
    cluster: Cluster, doctor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    # Slurm's GPUs are copies of /dev/null: torch sees none.
    status, found = doctor("--gpus-per-node", "1", "--partition", "high")
    planted = {"interfaces", "threads", "environment", "gpu", "driver", "nccl", "kill wait"}
    assert status == 1 and bad(found) | {"kill wait"} == planted
    assert "nosuch0" in found["gloo"]["text"] and found["gloo"]["level"] == "problem"
    assert found["interfaces"]["where"] == "n1, n2"


@pytest.mark.slow
def test_a_job_that_cannot_start_is_found(
    cluster: Cluster, doctor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys, "executable", "/nosuch/python")
    status, found = doctor("--nodes", "1")
    assert status == 1 and found["job"]["level"] == "problem"
    assert "ended as FAILED" in found["job"]["text"] and "/nosuch/python" in found["job"]["text"]


@pytest.mark.slow
def test_a_pending_job_is_cancelled_and_the_rest_reported(cluster: Cluster, doctor: Any) -> None:
    words = "sbatch --parsable --nodes 2 --exclusive --output /dev/null --wrap"
    blocker = cluster.command(*words.split(), "sleep 100")
    cluster.wait_for(blocker, "RUNNING", 30)
    status, found = doctor("--wait-s", "4")
    cluster.command("scancel", blocker)
    assert status == 0 and found["job"]["level"] == "warning"
    assert "pending after 4 s: " in found["job"]["text"] and found["slurm"]["level"] == "ok"
    until("no job", lambda: not cluster.command("squeue", "--noheader"), 30)


@pytest.mark.slow
def test_an_interrupt_cancels_the_job_and_cleans_up(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job._Watch, "_exchange_times", interrupt)
    with pytest.raises(KeyboardInterrupt):
        examine(LaunchPlan(), 2, tmp_path, 60, lambda text: None)
    until("no job", lambda: not cluster.command("squeue", "--noheader"), 30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_refused_job_is_told(cluster: Cluster, doctor: Any) -> None:
    status, found = doctor("--gpus-per-node", "9")
    assert status == 1 and "sbatch refused the job" in found["job"]["text"]
    status, found = doctor("--nodes", "9")
    text = found["job"]["text"]
    assert status == 1 and "would stay pending: the partition does not admit such a job" in text


@pytest.mark.slow
def test_a_partition_that_is_not_there_is_one_line(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "doctor", "--folder", str(tmp_path), "--partition", "nosuch"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--partition nosuch: no such partition" in line and "main, high" in line


@pytest.mark.slow
def test_a_preemption_without_the_users_signal_is_found(doctor: Any) -> None:
    for _ in cluster_or_skip(preempt_signal=False):
        _, found = doctor("--nodes", "1")
        assert bad(found) == {"preemption signal", "grace time", "kill wait"}
