"""The whole examination: login node, cluster, and nodes by a job."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hpcphotoz.launch.doctor.finding import Finding, Level, arranged, info
from hpcphotoz.launch.doctor.host import collect_login
from hpcphotoz.launch.doctor.host_rules import judge_host, judge_login
from hpcphotoz.launch.doctor.job import examine_nodes
from hpcphotoz.launch.doctor.node_rules import judge_nodes
from hpcphotoz.launch.doctor.slurm_facts import collect_cluster
from hpcphotoz.launch.doctor.slurm_rules import judge_cluster, judge_job
from hpcphotoz.launch.preparation import check_name
from hpcphotoz.launch.request.plan import LaunchPlan

_JOB_MINUTES = 6  # its limit: torch may take a minute to load from a cold file system
_NODES = 2


def examine(
    plan: LaunchPlan, nodes: int | None, run_folder: Path, wait_s: float, report: Callable[[str], None]
) -> list[Finding]:
    """Examine this machine, its cluster and some nodes.

    Args:
        plan: the launch that the user has in mind; one rank a node is started.
        nodes: how many nodes to examine; None: two, or one in a partition of one.
        run_folder: where runs write.
        wait_s: seconds to wait for the job.
        report: called with a line of progress.

    Returns:
        Findings in the order of `CHECKS`.

    Raises:
        BadInput: no such partition, or a folder to which Slurm cannot write.
    """
    check_name(str(run_folder))
    cluster = collect_cluster(plan.partition, plan.time_s, plan.signal_delay_s)
    login = collect_login(run_folder)
    found = [*judge_cluster(cluster), *judge_login(login)]
    if not cluster.installed:
        return arranged(
            [*found, *judge_host(login), info("job", "no job was submitted: no Slurm on this machine")]
        )
    stops = [
        each.name
        for each in found
        if each.level is Level.PROBLEM and each.name in ("slurm", "munge", "partition", "imports", "folder")
    ]
    if stops:
        first = ", ".join(dict.fromkeys(stops))
        return arranged([*found, info("job", f"no job was submitted: first see to: {first}")])
    there = int(cluster.partition.get("TotalNodes", _NODES))
    wanted = replace(
        plan,
        nodes=nodes or max(1, min(_NODES, there)),
        tasks_per_node=1,
        time=str(_JOB_MINUTES),
        signal_delay_s=0,
        job_name="hpcphotoz-doctor",
    )
    facts, job = examine_nodes(wanted, run_folder, wait_s, report)
    return arranged([*found, *judge_job(job, facts), *judge_nodes(facts, login if job.own_python else None)])
