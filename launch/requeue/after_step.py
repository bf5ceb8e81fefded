"""Decides in the batch script, after srun has failed, whether the job comes back; needs no torch.

    scontrol show job ... | python -m hpcphotoz.launch.requeue.after_step LAUNCH STATUS

ends with 0 if the job is to be requeued, and prints the nodes that it shall exclude then, as Slurm's list.
The batch script runs scontrol itself, because Python may run in a container without Slurm.

A job that was killed with no warning comes back, within the limit on requeues without progress. So does one
with a Python error, unless the next failure is one too and there is no newer checkpoint. One with bad input,
one that diverged, and one that was cancelled or requeued already, do not.
"""

import os
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.command_job import CommandJob
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.requeue.failures import (
    BAD_INPUT,
    DIVERGED,
    NO_PROGRESS,
    RANK_LOST,
    RankFailure,
    read_failures,
)
from hpcphotoz.launch.requeue.node_guard import (
    StartLog,
    bad_nodes,
    failed_node,
    given_exclusion,
    start_logs,
)
from hpcphotoz.launch.requeue.record import (
    FAILED,
    KILLED,
    NODE_FAILED,
    Requeue,
    RequeueRecord,
    newest_step,
    record_file,
)
from hpcphotoz.output import say

# A device or network error rather than one of the program; too little memory is one of the program.
_HARDWARE = re.compile(r"\b(CUDA|HIP|NCCL|RCCL|ECC)\b(?!.*out of memory)")
# The next start has another port.
_PORT_TAKEN = re.compile("Address already in use|another run listens on this port")
_STAYS_AWAY = (BAD_INPUT, DIVERGED)
_BAD_INPUT_STATUS = 2
_RUNNING = ("RUNNING", "SIGNALING")  # the second after the signal ahead of the time limit


def decide(
    record: RequeueRecord,
    step: int,
    restart: int,
    failures: Sequence[RankFailure],
    log: StartLog,
    max_requeues: int,
) -> Requeue | str:
    """The requeue of a job whose step has failed, or why there is none, in one line.

    Args:
        record: earlier requeues.
        step: of the newest checkpoint.
        restart: the start that has failed.
        failures: of its ranks, the first one first.
        log: what srun said of it.
        max_requeues: requeues in a row without progress; 0: no requeue at all.
    """
    own = [failure for failure in failures if failure.kind != RANK_LOST]
    port_taken = any(_PORT_TAKEN.search(failure.error) for failure in own)
    final = next((failure for failure in own if failure.kind in _STAYS_AWAY and not port_taken), None)
    if final:
        return f"not requeued: rank {final.rank} on {final.host}: {final.error}"
    error = own[0].error if own else "" if failures or not log.exited else log.task_end
    failed = bool(error) and not _HARDWARE.search(error)
    before = record.find(restart - 1)
    if failed and before and before.reason == FAILED and step <= (before.step or 0):
        return f"not requeued: failed twice at checkpoint step {step}: {error}"
    if refusal := record.refusal(step, max_requeues):
        return refusal
    return Requeue(restart, step, FAILED if failed else KILLED, failed_node(log, failures), error)


def requeue_after_failure(
    run: Path, job_id: str, log: Path, facts: Mapping[str, str], restart: int, max_requeues: int
) -> str | None:
    """Record the requeue of a job whose step has failed; the nodes to exclude, or None: it stays away.

    Args:
        run, job_id: run folder, and the job's id.
        log: of rank 0; srun's messages are in it.
        facts: fields of `scontrol show job` and `scontrol show partition`.
        restart: the start that has failed.
        max_requeues: requeues in a row without progress.

    Raises:
        BadInput: the record is damaged.
    """
    if facts.get("JobState") not in _RUNNING or facts.get("Restarts") != str(restart):
        return None  # cancelled, out of time, or requeued already
    path = record_file(run, job_id)
    record, logs = RequeueRecord.read(path), start_logs(log)
    failures = read_failures(run, job_id, restart)
    if any(failure.kind == NO_PROGRESS for failure in failures):
        return None  # rank 0 has said so
    for earlier, said in logs.items():  # Slurm has requeued the job without asking
        if earlier < restart and said.failed_node and not record.find(earlier):
            record = record.add(Requeue(earlier, None, NODE_FAILED, said.failed_node))
    if record.find(restart) is None:
        this = logs.get(restart, StartLog())
        found = decide(record, newest_step(run), restart, failures, this, max_requeues)
        if isinstance(found, str):
            say(f"hpcphotoz: {found}", sys.stderr)
            replace(record, ended=found).write(path)
            return None
        record = record.add(found)
        on = f" on {found.node}" if found.node else ""
        why = f"{found.reason}{on}" + (f": {found.error}" if found.error else "")
        say(f"hpcphotoz: {why}; requeued, goes on from step {found.step}", sys.stderr)
    bad = bad_nodes(record.requeues, record.excluded, facts, int(facts.get("TotalNodes", 0)))
    if bad:
        say(f"hpcphotoz: {', '.join(bad)} failed twice: not used again by this job", sys.stderr)
    replace(record, excluded=(*record.excluded, *bad)).write(path)
    return ",".join(filter(None, [given_exclusion(facts), *bad])) if bad else ""


def main(launch: Path, status: int, scontrol: str) -> int:
    """Decide for the job of this batch script; returns 0 if it is to be requeued.

    Args:
        launch: folder of the job's logs and pickle.
        status: of srun.
        scontrol: what Slurm says of the job and its partition.
    """
    env = os.environ
    array = env.get("SLURM_ARRAY_JOB_ID")
    job_id = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
    with open(launch / f"{job_id}_submitted.pkl", "rb") as file:
        job = pickle.load(file).function
    if not isinstance(job, TrainJob | CommandJob) or status == _BAD_INPUT_STATUS:
        return 1
    facts: dict[str, str] = {}
    for word in scontrol.split():
        name, _, value = word.partition("=")
        facts.setdefault(name, value)  # the job's come first, and before its paths
    log, restart = launch / f"{job_id}_0_log.out", int(env.get("SLURM_RESTART_COUNT", 0))
    try:
        given = Path(job.out), job_id, log, facts, restart, job.max_requeues
        exclude = requeue_after_failure(*given)
    except BadInput as error:
        say(f"hpcphotoz: not requeued: {error}", sys.stderr)
        return 1
    if exclude is None:
        return 1
    print(exclude)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.stdin.read()))
