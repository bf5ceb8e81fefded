"""What the partition of a launch says of it: a job that would never start, and why sbatch refused one."""

import os
import shutil
from collections.abc import Callable

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.doctor.slurm_facts import no_partition, pick_partition, read_partitions
from hpcphotoz.launch.doctor.slurm_rules import seconds
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.output import number_of

_PREFIXES = ("sbatch: error: ", "sbatch: ")
_ADVICE = (
    "give --partition, --account and counts that the cluster allows (`sinfo`), or ask "
    "`hpcphotoz launch doctor`"
)


def warn_of_limits(plan: LaunchPlan, report: Callable[[str], None]) -> None:
    """Report a job that its partition could never start; silent where Slurm does not tell."""
    name = plan.partition or os.environ.get("SBATCH_PARTITION", "")
    if shutil.which("scontrol") is None:
        return
    try:
        partition = pick_partition(read_partitions(), name)
    except BadInput:  # sbatch then says it, or Slurm does not answer
        return
    nodes, limit = partition.get("TotalNodes", ""), partition.get("MaxTime", "")
    most = [int(text) for text in (nodes, partition.get("MaxNodes", "")) if text.isdecimal()]
    longest = seconds(limit)
    asked, has = [], []
    if most and plan.nodes > min(most):
        asked, has = [f"--nodes {plan.nodes}"], [f"at most {number_of(min(most), 'node')} for a job"]
    if longest is not None and plan.time_s > longest:
        asked, has = [*asked, f"--time {plan.time}"], [*has, f"MaxTime {limit}"]
    if asked:
        whose = f"partition {partition['PartitionName']} has {' and '.join(has)}"
        report(f"{' '.join(asked)}: {whose}: this job would not start")


def refusal(plan: LaunchPlan, said: str) -> str:
    """One line on a job that sbatch refused: its own words, and what to do.

    Args:
        plan: what was asked for.
        said: the message of sbatch.
    """
    lines = [line.strip() for line in said.splitlines()]
    for prefix in _PREFIXES:
        lines = [line.removeprefix(prefix) for line in lines]
    reasons = "; ".join(dict.fromkeys(" ".join(line.split()) for line in lines if line))
    return f"sbatch refused the job: {reasons}: {_known_partition(plan) or _ADVICE}"


def _known_partition(plan: LaunchPlan) -> str:
    """The nearest partition, where there is none of the plan's name; "": there is, or Slurm does not tell."""
    if not plan.partition or shutil.which("scontrol") is None:
        return ""
    try:
        known = read_partitions()
    except BadInput:
        return ""
    missing = [name for name in plan.partition.split(",") if name not in known]
    return no_partition(missing[0], known) if known and missing else ""
