"""What a fake `scontrol` says is read, and every misconfiguration in it found."""

from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.doctor.finding import Level
from hpcphotoz.launch.doctor.slurm_facts import collect_cluster
from hpcphotoz.launch.doctor.slurm_rules import judge_cluster
from tests.helpers.launch.runs import Install

CONFIG = """Configuration data as of 2026-01-01T00:00:00
AuthType                = auth/munge
AuthInfo                = cred_expire=10,socket=/run/other
AccountingStorageType   = accounting_storage/slurmdbd
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SlurmctldParameters     = enable_configless,preempt_send_user_signal
SLURM_VERSION           = 23.02.7
Slurmctld(primary) at ctl is UP
"""
PARTITION = (
    "PartitionName={name} AllowAccounts=ALL Default={default} GraceTime=00:05:00 MaxTime=2-00:00:00 "
    "PreemptMode=REQUEUE State=UP TotalCPUs=8 TotalNodes=2"
)


def slurm(install: Install, config: str = CONFIG, partition: str = PARTITION) -> None:
    """Put a cluster's commands first in PATH."""
    both = partition.format(name="main", default="YES"), partition.format(name="gpu", default="NO")
    install(
        "scontrol",
        f'case "$2" in config) cat <<"E"\n{config}\nE\n;; *) cat <<"E"\n{chr(10).join(both)}\nE\nesac',
    )
    install("munge", 'test "$2" = --socket=/run/other && echo credential')
    install("unmunge", "grep -q credential")
    install("sacct", ":")


def bad(partition: str = "") -> dict[str, Level]:
    found = judge_cluster(collect_cluster(partition, 3600, 120))
    return {each.name: each.level for each in found if each.level >= Level.WARNING}


def test_a_sound_configuration_is_silent(install: Install) -> None:
    slurm(install)
    facts = collect_cluster("gpu", 3600, 120)
    assert facts.partition["PartitionName"] == "gpu" and facts.config["KillWait"] == "30 sec"
    assert {each.level for each in judge_cluster(facts)} == {Level.OK}
    assert collect_cluster("", 3600, 120).partition["PartitionName"] == "main"


@pytest.mark.parametrize(
    ("now", "planted", "check"),
    [
        (",preempt_send_user_signal", "", "preemption signal"),
        ("KillWait                = 30", "KillWait                = 5", "kill wait"),
        ("23.02.7", "20.02.1", "slurm"),
        ("GraceTime=00:05:00", "GraceTime=00:00:00", "grace time"),
        ("GraceTime=00:05:00", "GraceTime=00:01:00", "grace time"),
        ("State=UP", "State=INACTIVE", "partition"),
        ("MaxTime=2-00:00:00", "MaxTime=00:05:00", "time limit"),
        (
            "GraceTime=00:05:00 MaxTime=2-00:00:00 PreemptMode=REQUEUE",
            "GraceTime=300 PreemptMode=CANCEL",
            "requeue",
        ),
    ],
)
def test_a_planted_setting_is_found(now: str, planted: str, check: str, install: Install) -> None:
    assert now in CONFIG + PARTITION
    slurm(install, CONFIG.replace(now, planted), PARTITION.replace(now, planted))
    assert set(bad()) == {check}


def test_munge_that_does_not_sign_is_found(install: Install) -> None:
    slurm(install)
    install("unmunge", "echo 'unmunge: Error: Rewound credential' >&2; exit 16")
    assert bad() == {"munge": Level.PROBLEM}


def test_a_controller_that_does_not_answer_is_found(install: Install) -> None:
    slurm(install)
    install("scontrol", "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
    install("munge", "echo credential")
    assert bad() == {"slurm": Level.PROBLEM}


def test_no_accounting_is_told(install: Install, tmp_path: Path) -> None:
    slurm(install, CONFIG.replace("accounting_storage/slurmdbd", "(null)"))
    assert bad() == {}
    found = {each.name: each.level for each in judge_cluster(collect_cluster("", 3600, 120))}
    assert found["accounting"] is Level.INFO


def test_a_partition_that_is_not_there_is_refused(install: Install) -> None:
    slurm(install)
    with pytest.raises(
        BadInput, match=r"--partition gpus: no such partition \(did you mean gpu\?\): it has main, gpu"
    ):
        collect_cluster("gpus", 3600, 120)


def test_a_cluster_without_a_default_partition_wants_one(install: Install) -> None:
    slurm(install, partition=PARTITION.replace("{default}", "NO"))
    with pytest.raises(BadInput, match="give --partition, one of main, gpu"):
        collect_cluster("", 3600, 120)


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not collect_cluster("", 3600, 120).installed
