"""Slurm's states and reasons in plain words; squeue(1) lists them: JOB REASON CODES and JOB STATE CODES."""

import re

# Why a job waits, by the first word of Slurm's reason.
_PENDING = {
    "None": "Slurm has not looked at it yet",
    "Priority": "jobs of higher priority are before it",
    "Resources": "waits for nodes to become free",
    "Dependency": "waits for the job it depends on",
    "DependencyNeverSatisfied": "never begins, as the job it depends on failed: cancel it",
    "JobArrayTaskLimit": "as many jobs of its array run as may run at once",
    "BeginTime": "waits for its begin time",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "Cleaning": "is requeued: Slurm still cleans up after the start before",
    "Prolog": "the prolog of its nodes runs",
    "NodeDown": "a node that it needs is down",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "BadConstraints": "no node meets its constraints: cancel it, and ask for others",
    "PartitionDown": "the partition is down: wait, or cancel it and take another",
    "PartitionInactive": "the partition is inactive: wait, or cancel it and take another",
    "PartitionConfig": "the partition does not admit such a job: cancel it, and keep to the limits that "
    "`scontrol show partition` gives, or take another",
    "PartitionTimeLimit": "asks for more time than the partition allows: cancel it, and ask for less",
    "PartitionNodeLimit": "asks for more nodes than the partition allows: cancel it, and ask for fewer",
    "JobHeldUser": "is held: `scontrol release` lets it go",
    "JobHeldAdmin": "is held by an administrator",
    "JobHoldMaxRequeue": "is held: it was requeued too often",
    "InvalidAccount": "the account is not valid: cancel it, and give another",
    "InvalidQOS": "the QOS is not valid: cancel it, and give another",
    "launch_failed_requeued_held": "is held: its launch failed; `scontrol release` lets it go",
    "job_requeued_in_held_state": "is requeued and held: `scontrol release` lets it go",
}
# Reasons such as QOSMaxJobsPerUserLimit, AssocGrpGRESMinutes or MaxCpuPerAccount.
_LIMIT = re.compile(r"(QOS|Assoc)?(Grp|Max|Min|JobLimit|ResourceLimit|TimeLimit|UsageThreshold)\w*")
_PARTITION = re.compile(r"Partition\w+")
_LIMIT_OF = {"QOS": "a limit of the QOS", "Assoc": "a limit of your account", None: "a limit"}

# How a job ended, by Slurm's state.
_ENDED = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELLED": "was cancelled",
    "TIMEOUT": "reached its time limit",
    "OUT_OF_MEMORY": "ran out of memory",
    "NODE_FAIL": "lost a node",
    "BOOT_FAIL": "had a node that did not boot",
    "DEADLINE": "reached its deadline",
    "PREEMPTED": "was preempted",
    "REVOKED": "was moved to another cluster",
}
_SIGNALS = {
    "SIGUSR2 received": "time limit or preemption (SIGUSR2)",
    "SIGUSR1 received": "it was told to stop (SIGUSR1)",
    "SIGTERM received": "it was cancelled, or told to stop (SIGTERM)",
    "SIGINT received": "it was interrupted (SIGINT)",
}
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
ENDED = tuple(_ENDED)
NEVER = "DependencyNeverSatisfied"

# What Slurm writes into the log of rank 0, where it stays when Slurm itself has forgotten the job.
_LOGGED = (
    (re.compile(r"oom[-_ ]kill|out-of-memory handler|task \d+: Out Of Memory"), "OUT_OF_MEMORY"),
    (re.compile(r"CANCELLED AT \S+ DUE TO TIME LIMIT"), "TIMEOUT"),
    (re.compile(r"CANCELLED AT \S+ DUE TO (NODE FAILURE|FAILURE OF)|Node failure on"), "NODE_FAIL"),
    (re.compile(r"CANCELLED AT \S+ DUE TO PREEMPTION"), "PREEMPTED"),
    (re.compile(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT"), "CANCELLED"),  # a step is also after a bad exit
)


def waits_because(reason: str) -> str:
    """Why a job waits, with Slurm's own word, as in "waits for nodes to become free (Resources)"."""
    word = re.split(r"[,\s]", reason.strip("()"), maxsplit=1)[0]
    limit = _LIMIT.fullmatch(word)
    if word not in _PENDING and _PARTITION.fullmatch(word):
        word = "PartitionConfig"
    if word == "None":
        return _PENDING[word]
    if word in _PENDING:
        return f"{_PENDING[word]} ({reason})"
    return f"{_LIMIT_OF[limit[1]]} is reached ({reason})" if limit else f"Slurm says: {reason}"


def ended_as(state: str, exit_status: int = 0) -> str:
    """How a job ended in words, with Slurm's state, and the exit code of one that failed.

    Args:
        state: as squeue gives it.
        exit_status: as wait(2) gives it: 256 times the exit code, plus the signal.
    """
    code, number = exit_status >> 8, exit_status & 0x7F
    how = f", signal {number}" if number else f", exit code {code}" if code else ""
    return f"{_ENDED.get(state, 'ended')} (Slurm: {state}{how if state == 'FAILED' else ''})"


def stopped_because(reason: str | None) -> str | None:
    """Why a run stopped, for the user, with the signal's name; other reasons as they are."""
    return _SIGNALS.get(reason or "", reason)


def logged_end(text: str) -> str | None:
    """The state in which a job ended by what Slurm wrote into its log; None: it wrote nothing of the kind."""
    return next((state for pattern, state in _LOGGED if pattern.search(text)), None)
