"""Which node has failed, and which nodes a job does not use again."""

from pathlib import Path

import pytest

from hpcphotoz.launch.requeue.failures import RankFailure
from hpcphotoz.launch.requeue.node_guard import StartLog, bad_nodes, failed_node, node_count, start_logs
from hpcphotoz.launch.requeue.record import FAILED, KILLED, STOPPED, Requeue

# As srun of Slurm 22.05 writes it.
LOG = """\
hpcphotoz: start 0 on n[1-2]
submitit INFO (2026-11-29 06:20:01,000) - Starting with JobEnvironment
srun: error: n2: task 3: Killed
srun: launch/slurm: _step_signal: Terminating StepId=1.0
srun: error: n1: tasks 0-1: Terminated
slurmstepd-n1: error: *** JOB 1 ON n1 CANCELLED AT 2026-11-29T06:20:01 DUE TO JOB REQUEUE ***
hpcphotoz: start 1 on n[1-2]
srun: error: Node failure on n2
srun: error: n1: tasks 0-1: Killed
hpcphotoz: start 2 on n[1-2]
srun: error: n1: task 0: Exited with exit code 1
hpcphotoz: start 3 on n[1-2]
"""


def failure(kind: str, host: str, error: str = "") -> RankFailure:
    return RankFailure(0.0, 1, host, "7", 0, kind, error, "")


def test_what_srun_said_of_each_start(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG)
    assert start_logs(tmp_path / "log") == {
        0: StartLog("n2", "Killed"),
        1: StartLog("n1", "Killed", "n2"),
        2: StartLog("n1", "Exited with exit code 1"),
        3: StartLog(),
    }
    assert start_logs(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("log", "failures", "node"),
    [
        (StartLog("n2", "Killed"), [failure("RankLost", "n1", "rank 3 on other has ended")], "n2"),
        (StartLog("n1", "Exited with exit code 1"), [failure("ValueError", "n2")], "n2"),
        (StartLog("n1", "Exited with exit code 1"), [], "n1"),
        (StartLog("n1", "Killed", "n2"), [], "n2"),
        (
            StartLog("n1", "Exited with exit code 1"),
            [failure("RankLost", "n1", "runs/a: rank (rank 0) at step 3: rank 3 on n2.site is silent")],
            "n2",
        ),
        (StartLog("n1", "Exited with exit code 1"), [failure("RankLost", "n1", "no answer")], None),
        (StartLog(), [], None),
    ],
)
def test_the_node_that_failed_first(log: StartLog, failures: list[RankFailure], node: str | None) -> None:
    assert failed_node(log, failures) == node


def entries(*nodes: str | None) -> list[Requeue]:
    return [Requeue(k, 0, KILLED if node else STOPPED, node) for k, node in enumerate(nodes)]


def test_a_node_is_excluded_after_two_failures() -> None:
    job = {"NumNodes": "2", "ExcNodeList": "(null)"}
    assert bad_nodes(entries("n1", None, "n2"), (), job, 9) == []
    assert bad_nodes(entries("n1", None, "n2", "n1"), (), job, 9) == ["n1"]
    assert bad_nodes([*entries("n1"), Requeue(1, 0, FAILED, "n1")], (), job, 9) == ["n1"]


def test_enough_nodes_are_left() -> None:
    job = {"NumNodes": "2", "ExcNodeList": "(null)"}
    twice = entries(*"abcdef", *"abcdef")
    assert bad_nodes(twice, (), job, 2) == []
    assert bad_nodes(twice, (), job, 4) == ["a", "b"]
    assert bad_nodes(twice, (), job, 100) == ["a", "b", "c", "d"]
    assert bad_nodes(twice, (), job, 0) == [], "the size of the partition is not known"
    excluded = ("a", "b")
    assert bad_nodes(twice, excluded, {**job, "ExcNodeList": "a,b"}, 100) == ["c", "d"]
    given_by_user = {**job, "ExcNodeList": "m[1-3],a,b"}
    assert bad_nodes(twice, excluded, given_by_user, 8) == ["c"]


@pytest.mark.parametrize(
    ("nodes", "count"), [("n1", 1), ("n[1-3,7],m2", 5), ("a,b", 2), ("r[1-2]n[01-10]", 20)]
)
def test_the_nodes_of_a_list_are_counted(nodes: str, count: int) -> None:
    assert node_count(nodes) == count
