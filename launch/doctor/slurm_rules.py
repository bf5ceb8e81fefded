"""Judges what Slurm says of itself: pure functions of facts."""

import re
from collections.abc import Sequence

from hpcphotoz.launch.doctor.facts import ClusterFacts, JobFacts, NodeFacts
from hpcphotoz.launch.doctor.finding import Finding, info, ok, problem, warning
from hpcphotoz.launch.follow.reasons import waits_because

_OLDEST = (20, 11)
_KILL_WAIT_S = 30  # Slurm's own default
_SUBMITIT_MINUTES = 10  # with fewer, submitit takes every signal for a time-out
# Reasons for which a job is pending until somebody changes it, or the cluster.
NEVER_STARTS = (
    *("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "PartitionDown", "PartitionInactive"),
    *("BadConstraints", "InvalidAccount", "InvalidQOS", "JobHeldAdmin", "JobHeldUser"),
)
_ADMINISTRATORS = "ask the administrators"


def judge_cluster(facts: ClusterFacts) -> list[Finding]:
    """Findings on a cluster and a partition."""
    if not facts.installed:
        return [info("slurm", "no Slurm on this machine: local checks only")]
    if facts.error:
        fix = "run `scontrol ping`; try another login node, or wait until the controller is back"
        return [problem("slurm", f"the controller does not answer: {facts.error}", fix), _munge(facts)]
    found = [_slurm(facts), _munge(facts), _partition(facts), *_preemption(facts)]
    return [*found, _requeue(facts), _time_limit(facts), _accounting(facts)]


def judge_job(job: JobFacts, nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Findings on the job: whether it ran to its end on every node, and may be requeued.

    Args:
        job: what became of it.
        nodes: facts of the nodes that wrote any, in order of rank.
    """
    if job.refusal:
        fix = "give --partition, --account and counts that the cluster allows (`sinfo`)"
        return [problem("job", f"sbatch refused the job: {job.refusal}", fix)]
    found, name = [], f"job {job.job_id}"
    if not job.may_requeue:
        text = "Slurm took --requeue away from the job: a preempted run does not come back by itself"
        fix = f"{_ADMINISTRATORS} about job_submit plugins; until then launch again after a stop"
        found.append(problem("requeue", text, fix))
    waits = waits_because(job.reason)
    if not job.has_ended and job.state == "PENDING" and job.reason in NEVER_STARTS:
        text = f"{name} would stay pending: {waits}: cancelled, no node is checked"
        fix = "ask for what the partition has and allows (`scontrol show partition`), or choose another"
        return [*found, problem("job", text, fix)]
    if not job.has_ended and job.state in ("PENDING", "CONFIGURING"):
        text = f"{name} was pending after {job.wait_s:g} s: {waits}: cancelled, no node is checked"
        fix = "wait longer (--wait-s), ask for fewer nodes, or choose another partition"
        return [*found, warning("job", text, fix)]
    whole = {node.rank for node in nodes if node.stage == "end"}
    left = [rank for rank in range(job.nodes) if rank not in whole]
    if not left:
        return [*found, ok("job", f"{name} ran on {', '.join(node.where for node in nodes)}")]
    stage = next((node.stage for node in nodes if node.rank == left[0]), "start")
    ended = f"ended as {job.state}" if job.has_ended else f"did not end within {job.wait_s:g} s (cancelled)"
    text = f"{name} {ended}, rank {left[0]} in: {stage}; {job.last_lines.get(left[0], 'it printed nothing')}"
    fix = "see to what its last line says; Python, packages and this folder must be there on the nodes"
    return [*found, problem("job", text, fix)]


def seconds(text: str) -> int | None:
    """Seconds of a time as Slurm prints it, such as "1-02:00:00" or "30 sec"; None: no limit."""
    if found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text):
        days, hours, minutes, rest = (int(number or 0) for number in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if found := re.match(r"(\d+)", text):
        return int(found[1])
    return None


def _slurm(facts: ClusterFacts) -> Finding:
    version = facts.config.get("SLURM_VERSION", "")
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers and numbers < _OLDEST:
        text = f"Slurm {version}: older than 20.11, options of the batch script are not understood"
        return warning("slurm", text, "submit with --dry-run, and compare the script with `man sbatch`")
    return ok("slurm", f"the controller answers, Slurm {version or 'of unknown version'}")


def _munge(facts: ClusterFacts) -> Finding:
    if facts.munge_error:
        text = f"munge does not sign: {facts.munge_error}: Slurm refuses every command"
        return problem("munge", text, f"{_ADMINISTRATORS} to start munged on this node, and to set its clock")
    return ok("munge", "munge signs and reads credentials")


def _partition(facts: ClusterFacts) -> Finding:
    name, state = facts.partition.get("PartitionName", ""), facts.partition.get("State", "")
    if state != "UP":
        text = f"partition {name} is {state or 'in an unknown state'}: jobs there do not start"
        return problem("partition", text, "choose another with --partition (`sinfo -s` lists them)")
    return ok("partition", f"{name} is up, {facts.partition.get('TotalNodes', '?')} nodes")


def preempts(facts: ClusterFacts) -> bool:
    """Whether jobs of the partition are stopped for others."""
    none = facts.config.get("PreemptType", "preempt/none") in ("preempt/none", "(null)")
    return not none and facts.partition.get("PreemptMode", "OFF") != "OFF"


def _preemption(facts: ClusterFacts) -> list[Finding]:
    """The checks "preemption signal", "grace time" and "kill wait"."""
    kill = seconds(facts.config.get("KillWait", "")) or 0
    if not preempts(facts):
        text = "jobs of this partition are not preempted"
        return [ok("preemption signal", text), ok("grace time", text), ok("kill wait", f"{kill} s")]
    found, grace = [], seconds(facts.partition.get("GraceTime", "")) or 0
    if "preempt_send_user_signal" in facts.config.get("SlurmctldParameters", ""):
        found.append(
            ok("preemption signal", "a preemption sends the signal of the job (preempt_send_user_signal)")
        )
    else:
        text = (
            "a preemption sends SIGTERM, not the signal of --signal: training saves and is requeued; "
            "programs that wait for USR2 alone are killed"
        )
        fix = f"{_ADMINISTRATORS} for SlurmctldParameters=preempt_send_user_signal"
        found.append(warning("preemption signal", text, fix))
    if grace == 0:
        text = f"GraceTime 0: a preempted job has only KillWait, {kill} s, to save"
        fix = f"{_ADMINISTRATORS} for a GraceTime; until then lower --run.checkpoint_steps"
        found.append(problem("grace time", text, fix))
    elif grace < facts.signal_delay_s:
        before = f"the {facts.signal_delay_s} s that a time limit leaves for saving"
        text = f"GraceTime {grace} s: a preemption leaves less than {before}"
        fix = f"make sure that a checkpoint is saved in {grace} s, or lower --run.checkpoint_steps"
        found.append(warning("grace time", text, fix))
    else:
        found.append(ok("grace time", f"a preempted job has {grace} s to save"))
    if kill < _KILL_WAIT_S:
        text = f"KillWait {kill} s: so long after SIGTERM a job is killed, also one that is cancelled"
        found.append(
            warning("kill wait", text, f"cancel runs with a file STOP, or {_ADMINISTRATORS} for 30 s")
        )
    else:
        found.append(ok("kill wait", f"{kill} s"))
    return found


def _requeue(facts: ClusterFacts) -> Finding:
    if preempts(facts) and facts.partition.get("PreemptMode", "").startswith("CANCEL"):
        text = "PreemptMode=CANCEL: a preempted job saves, but does not come back"
        fix = "launch the same command again after a preemption, or choose a partition that requeues"
        return warning("requeue", text, fix)
    if facts.config.get("JobRequeue") == "0":
        return info("requeue", "JobRequeue=0: jobs are requeued only if they ask for it; `launch` does")
    return ok("requeue", "jobs may be requeued")


def _time_limit(facts: ClusterFacts) -> Finding:
    text = facts.partition.get("MaxTime", "UNLIMITED")
    limit = seconds(text)
    if limit is None:
        return ok("time limit", "no limit")
    if limit <= 60 * _SUBMITIT_MINUTES:
        said = f"MaxTime {text}: in such short jobs submitit takes a preemption for a time-out"
        return warning("time limit", said, "choose a partition with longer jobs, or raise --max-requeues")
    if limit < facts.time_s:
        said = f"MaxTime {text}: shorter than the {facts.time_s // 60} minutes that the launch asks for"
        return warning("time limit", said, f"launch with --time {limit // 60}")
    return ok("time limit", f"MaxTime {text}")


def _accounting(facts: ClusterFacts) -> Finding:
    storage = facts.config.get("AccountingStorageType", "")
    if not facts.has_sacct or storage in ("", "(null)", "accounting_storage/none"):
        return info(
            "accounting", "no sacct here: `hpcphotoz status` does without; submitit's own state is UNKNOWN"
        )
    return ok("accounting", "sacct knows past jobs")
