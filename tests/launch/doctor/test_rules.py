"""The doctor finds a planted misconfiguration of each kind that it claims to find, and is silent without."""

import re
from dataclasses import replace

import pytest

from hpcphotoz.launch.doctor.facts import ClusterFacts, NodeFacts
from hpcphotoz.launch.doctor.finding import CHECKS, Finding, Level, arranged, ok, warning
from hpcphotoz.launch.doctor.node_rules import judge_nodes
from hpcphotoz.launch.doctor.slurm_rules import judge_cluster, seconds
from tests.helpers.launch.planted import (
    PLANTED,
    Facts,
    Plant,
    healthy,
    in_config,
    in_job,
    in_partition,
    on_node,
)
from tests.helpers.paths import ROOT

PLANTS = [(name, number, *each) for name, plants in PLANTED.items() for number, each in enumerate(plants)]


def test_nothing_is_wrong_with_a_healthy_cluster() -> None:
    found = healthy().judged()
    assert {each.level for each in found} == {Level.OK}
    assert {each.name for each in found} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "number", "plant", "level", "others"), PLANTS, ids=[f"{name}-{k}" for name, k, *_ in PLANTS]
)
def test_what_is_planted_is_found_and_nothing_else(
    name: str, number: int, plant: Plant, level: Level, others: set[str]
) -> None:
    bad = plant(healthy()).bad()
    assert bad.pop(name) == level
    assert set(bad) == others


def test_every_check_has_a_planted_fault_and_a_line_in_the_documentation() -> None:
    page = (ROOT / "docs/how-to/doctor.md").read_text()
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(CHECKS)
    assert all(len(row) == 4 and all(row) for row in rows)
    assert list(PLANTED) == list(CHECKS)
    assert [name for name, plants in PLANTED.items() if not plants] == ["accounting"]


def test_no_accounting_is_told() -> None:
    facts = in_config(AccountingStorageType="(null)")(healthy())
    (found,) = (each for each in facts.judged() if each.name == "accounting")
    assert found.level is Level.INFO and "status" in found.text


def test_a_partition_that_does_not_preempt_needs_no_signal_or_grace_time() -> None:
    facts = in_config(SlurmctldParameters="(null)")(in_partition(PreemptMode="OFF", GraceTime="0")(healthy()))
    assert facts.bad() == {}
    facts = in_config(PreemptType="preempt/none", KillWait="1 sec")(in_partition(GraceTime="0")(healthy()))
    assert facts.bad() == {}


def test_without_slurm_only_the_machine_is_judged() -> None:
    (found,) = judge_cluster(ClusterFacts(installed=False))
    assert (found.level, found.text) == (Level.INFO, "no Slurm on this machine: local checks only")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("UNLIMITED", None),
        ("01:30:00", 5400),
        ("2-00:00:01", 172801),
        ("30 sec", 30),
        ("0", 0),
        ("00:00:00", 0),
    ],
)
def test_times_as_slurm_prints_them(text: str, want: int | None) -> None:
    assert seconds(text) == want


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GLOO_SOCKET_IFNAME", "ib0"),
        ("GLOO_SOCKET_IFNAME", "ib0,eth0"),
        ("NCCL_SOCKET_IFNAME", "ib"),
        ("NCCL_SOCKET_IFNAME", "=eth0"),
        ("NCCL_SOCKET_IFNAME", "^docker,lo"),
        ("NCCL_SOCKET_IFNAME", "hsn,eth"),
        ("OMP_NUM_THREADS", "8"),
        ("OMP_NUM_THREADS", "4,2"),
    ],
)
def test_right_values_of_variables_are_left_alone(variable: str, value: str) -> None:
    assert on_node(env={variable: value})(healthy()).bad() == {}


def test_clocks_within_the_uncertainty_of_the_file_system_are_not_judged() -> None:
    assert on_node(login_ahead_s=(-45.0, 40.0))(healthy()).bad() == {}


def test_another_python_on_the_nodes_is_compared_between_them_alone() -> None:
    facts = healthy()
    other = replace(facts, nodes=tuple(n.model_copy(update={"python": "3.12.4"}) for n in facts.nodes))
    assert other.bad() == {"versions": Level.PROBLEM}
    assert in_job(own_python=False)(other).bad() == {}
    assert on_node(python="3.13.0")(in_job(own_python=False)(other)).bad() == {"versions": Level.PROBLEM}


def test_one_node_is_not_judged_on_the_network() -> None:
    def alone(facts: Facts) -> Facts:
        node = facts.nodes[0].model_copy(update={"nodes": 1, "gb_s": {}})
        return replace(facts, nodes=(node,), job=facts.job.model_copy(update={"nodes": 1}))

    found = alone(healthy()).judged()
    assert max(each.level for each in found) is Level.INFO
    assert not {"file locking", "rename", "hdf5", "nccl"} & {each.name for each in found}


def test_checks_that_a_node_did_not_reach_are_not_judged() -> None:
    node = NodeFacts(where="n1", stage="shared folder", interfaces={"lo": 65536})
    found = {each.name for each in judge_nodes([node], node)}
    assert not {"shared folder", "file speed", "rename"} & found


def test_equal_findings_become_one_and_what_is_fine_gives_way() -> None:
    slow = warning("file speed", "slow", "move", "n2")
    rows = arranged(
        [ok("hdf5", "fine", "n1"), slow, ok("hdf5", "fine", "n2"), ok("file speed", "fast", "n1")]
    )
    assert rows == [slow, ok("hdf5", "fine", "n1, n2")]


def test_a_finding_without_a_fix_or_of_an_unknown_check_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a fix"):
        Finding("gpu", Level.WARNING, "it is slow")
    with pytest.raises(ValueError, match="no check"):
        ok("weather", "fine")
