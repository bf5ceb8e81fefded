"""Which node failed, from srun's messages, and which nodes a job shall not use again."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.launch.requeue.failures import RANK_LOST, RankFailure
from hpcphotoz.launch.requeue.record import Requeue

MAX_EXCLUDED = 4  # further bad nodes are rather a bad job
_FAILURES_OF_A_BAD_NODE = 2
# The batch script prints it before srun: SLURM_RESTART_COUNT and SLURM_JOB_NODELIST.
_START = re.compile(r"^hpcphotoz: start (\d+) on (\S+)$", re.MULTILINE)
_TASK = re.compile(r"^srun: error: ([\w.-]+): tasks? [\d,-]+: (.+)$", re.MULTILINE)
_NODE = re.compile(r"^srun: error: Node failure on ([\w.-]+)", re.MULTILINE)
_LOST_RANK = re.compile(r"rank \d+ on ([\w.-]+)")


@dataclass(frozen=True)
class StartLog:
    """What srun said of one start of a job; each is "" if it said nothing."""

    task_node: str = ""  # node of the first task that failed
    task_end: str = ""  # how it ended, such as "Killed" or "Exited with exit code 1"
    failed_node: str = ""  # node that Slurm reports as failed

    @property
    def exited(self) -> bool:
        """Whether the first task that failed ended by itself: no signal has killed it."""
        return self.task_end.startswith("Exited with exit code")


def start_logs(log: Path) -> dict[int, StartLog]:
    """What srun said of each start of a job, by its restart count, from the log of rank 0."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return {}
    begins = [*_START.finditer(text)]
    ends = [*(each.start() for each in begins[1:]), len(text)]
    found = {}
    for begin, end in zip(begins, ends, strict=True):
        task, node = _TASK.search(text, begin.end(), end), _NODE.search(text, begin.end(), end)
        told = (task[1], task[2]) if task else ("", "")
        found[int(begin[1])] = StartLog(*told, node[1] if node else "")
    return found


def failed_node(log: StartLog, failures: Sequence[RankFailure]) -> str | None:
    """The node that failed first in a start; None: not known.

    Args:
        log: what srun said.
        failures: of its ranks, the first one first.
    """
    own = [failure for failure in failures if failure.kind != RANK_LOST]
    if log.failed_node:
        return log.failed_node
    if own:
        return own[0].host
    if failures and (log.exited or not log.task_node):
        # The ranks that miss a silent one end first, and name it.
        named = _LOST_RANK.search(failures[0].error)
        return named[1].partition(".")[0] if named else None
    return log.task_node or None


def bad_nodes(
    requeues: Sequence[Requeue], excluded: Sequence[str], job: Mapping[str, str], partition_nodes: int
) -> list[str]:
    """Further nodes that the job shall not use: those that have failed twice, the worst one first.

    At most four, and so many that the partition still has enough nodes for the job.

    Args:
        requeues: of the job.
        excluded: nodes that were excluded for this reason before.
        job: its fields as `scontrol show job` gives them.
        partition_nodes: number of nodes of its partition; 0: not known, nothing is excluded.
    """
    failures = Counter(entry.node for entry in requeues if entry.node)
    needed = int(job.get("NumNodes", "1").partition("-")[0] or 1)
    given = given_exclusion(job)
    by_user = node_count(given) - len(excluded) if given else 0
    room = min(MAX_EXCLUDED, partition_nodes - needed - by_user) - len(excluded)
    bad = [node for node, n in failures.most_common() if n >= _FAILURES_OF_A_BAD_NODE]
    return [node for node in bad if node not in excluded][: max(room, 0)]


def given_exclusion(job: Mapping[str, str]) -> str:
    """The nodes that a job excludes already, as Slurm's list; "": none."""
    given = job.get("ExcNodeList", "")
    return "" if given == "(null)" else given


def node_count(nodes: str) -> int:
    """The number of nodes in a list of Slurm's, such as "n[1-3,7],m2"."""
    total = 0
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        count = 1
        for group in re.findall(r"\[([^\]]*)\]", name):
            spans = [part.partition("-")[::2] for part in group.split(",")]
            count *= sum(int(last or first) - int(first) + 1 for first, last in spans)
        total += count
    return total
