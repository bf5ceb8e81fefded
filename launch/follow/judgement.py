"""Judges the state of a run from its folder, its submissions and the answer of Slurm."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.failures import (
    Failure,
    first_failure,
    last_start,
    log_files,
    read_tail,
)
from hpcphotoz.launch.follow.folder_state import FolderState, checkpoint_step, read_folder
from hpcphotoz.launch.follow.progress import Figures
from hpcphotoz.launch.follow.queue import KnownJob, Queue
from hpcphotoz.launch.follow.reasons import NEVER, ended_as, logged_end, waits_because
from hpcphotoz.launch.follow.submissions import Submission, seconds, stamp
from hpcphotoz.launch.requeue.record import FAILED, KILLED, NODE_FAILED, STOPPED, RequeueRecord, record_file

_OWN_TURN = ("Dependency", "Priority", "Resources", "None", "JobArrayTaskLimit", "BeginTime")
_BEFORE = {STOPPED: "saved and stopped", KILLED: "was killed", FAILED: "failed", NODE_FAILED: "lost a node"}
CANCELLED = "cancelled before it trained"
_CLOCKS_S = 300.0  # by which the clocks of a login node and of the nodes may differ


@dataclass(frozen=True)
class Judgement:
    """State of a run; the fields are those of `status.RunStatus`."""

    state: str
    reason: str | None
    time: str
    step: int | None
    host: str | None = None
    job_id: str | None = None
    figures: Figures = field(default_factory=Figures)
    requeues: int = 0
    expected: str | None = None
    later: tuple[str, ...] = ()
    failure: Failure | None = None
    slurm: str | None = None


def judge(
    run: Path, folder: FolderState | None, submissions: Sequence[Submission], queue: Queue
) -> Judgement:
    """The state of a run.

    Args:
        run: run folder.
        folder: what it tells; None: no training has begun.
        submissions: the run's, the earliest first; at least one if `folder` is None.
        queue: what Slurm knows of them.
    """
    known = [KnownJob(one, queue.jobs.get(one.job_id), folder) for one in submissions]
    waiting = [job for job in known if job.queued and job.queued.waits]
    active = [job for job in known if job.queued and not job.queued.waits and not job.queued.ended]
    if folder and folder.state == "running":
        return _followed_by(waiting, _of_folder(run, folder, known, fails=False))
    if active:
        return _followed_by(waiting, _active(run, folder, known, active[0]))
    hopeful = [job for job in waiting if job.queued and job.queued.reason != NEVER]
    if waiting and (hopeful or folder is None) and not (folder and folder.state == "finished"):
        job = (hopeful or waiting)[0]
        return _followed_by([one for one in waiting if one is not job], _waiting(run, folder, job))
    return _followed_by(waiting, _ended(run, folder, known, queue))


def _followed_by(waiting: Sequence[KnownJob], found: Judgement) -> Judgement:
    """A judgement with the other jobs of the run that wait, and why, if for more than their turn."""
    held: dict[str, list[str]] = {}
    for job in waiting:
        if job.queued and job.queued.reason not in _OWN_TURN:
            held.setdefault(waits_because(job.queued.reason), []).append(job.id)
    whys = [f"job {', '.join(ids)} {why}" for why, ids in held.items() if why not in (found.reason or "")]
    reason = "; ".join(part for part in (found.reason, *whys) if part) or None
    return replace(found, later=tuple(job.id for job in waiting), reason=reason)


def _active(run: Path, folder: FolderState | None, known: Sequence[KnownJob], job: KnownJob) -> Judgement:
    """Of a run whose job has its nodes, and whose lock nobody holds: it begins, or has ended."""
    assert job.queued
    if folder and len(job.starts) > job.queued.restarts:
        return _of_folder(run, folder, known)
    since = stamp(job.queued.start.timestamp()) if job.queued.start else job.submission.when
    reason = f"job {job.id} begins" if job.queued.state != "COMPLETING" else f"job {job.id} ends"
    about = _step(folder), job.queued.nodes or None, job.id, _totals(folder)
    return Judgement("running", reason, since, *about, job.requeues)


def _waiting(run: Path, folder: FolderState | None, job: KnownJob) -> Judgement:
    """Of a run whose job waits in the queue."""
    assert job.queued
    again = bool(job.starts or job.queued.restarts)
    reason = waits_because(job.queued.reason) + (_start_before(run, job) if again else "")
    expected = stamp(job.queued.start.timestamp()) if job.queued.start else None
    # A requeued job waits for its next start: what it has done so far is one start more.
    requeues = max(job.queued.restarts, len(job.starts)) if again else 0
    about = job.submission.when, _step(folder), None, job.id, _totals(folder), requeues, expected
    return Judgement("requeued" if again else "pending", reason, *about)


def _start_before(run: Path, job: KnownJob) -> str:
    """How the start ended after which a job was requeued; "": it is not recorded."""
    requeues = _record(run, job).requeues
    if not requeues:
        return ""
    last = requeues[-1]
    where, error = f" on {last.node}" if last.node else "", f": {last.error}" if last.error else ""
    return f"; the start before {_BEFORE.get(last.reason, last.reason)}{where}{error}"


def _record(run: Path, job: KnownJob) -> RequeueRecord:
    """The requeues of a job; empty where they cannot be read."""
    try:
        return RequeueRecord.read(record_file(run, job.id))
    except (BadInput, OSError):
        return RequeueRecord()


def _ended(run: Path, folder: FolderState | None, known: Sequence[KnownJob], queue: Queue) -> Judgement:
    """Of a run none of whose jobs waits or runs, as far as Slurm is asked."""
    start = folder.starts[-1] if folder and folder.starts else {}
    began, ended = seconds(start.get("time")), seconds((start.get("end") or {}).get("time"))
    for job in reversed(known):
        cancelled = job.cancelled or (job.queued is not None and job.queued.state == "CANCELLED")
        last = job.submission.time if folder and folder.state == "finished" else job.last_sign
        # One that was submitted twice finds the run locked, and fails while the first job trains.
        if job.starts or job.submission.time <= began or last <= ended:
            break
        if not (cancelled and folder):  # else one of a chain, which the run did not need
            found = _never_trained(run, folder, job, queue)
            if found:
                return found
    if folder:
        return _of_folder(run, folder, known)
    job = known[-1]
    gone = (
        f"job {job.id} was removed from the queue before it began: it wrote no log, and Slurm does not know"
    )
    reason, state = queue.problem or f"{gone} it any more", "pending" if queue.problem else "lost"
    return Judgement(state, reason, job.submission.when, None, None, job.id)


def _never_trained(run: Path, folder: FolderState | None, job: KnownJob, queue: Queue) -> Judgement | None:
    """Of a job that has ended, and recorded no start; None: nothing is known of it, or it was not needed."""
    state, exit_status = (job.queued.state, job.queued.exit_status) if job.queued else (None, 0)
    logs = log_files(job.launch, job.id)
    about = job.submission.when, _step(folder), None, job.id, _totals(folder), job.requeues
    if state == "COMPLETED" or (not state and (job.launch / f"{job.id}_0_result.pkl").exists()):
        failure = None if state else first_failure(run, job.launch, job.id, job.submission.time - _CLOCKS_S)
        if not failure:
            return None if folder else Judgement("finished", None, *about)
    if job.cancelled and state in (None, "CANCELLED"):
        return Judgement("stopped", CANCELLED, *about)
    if not logs and (state == "CANCELLED" or (state is None and not queue.problem)):
        unmet = _unmet(job)
        if unmet:
            return Judgement("stopped", f"not begun: {unmet} did not finish", *about)
    if state is None and not logs:
        return None
    if state == "CANCELLED":
        return Judgement("stopped", CANCELLED, *about)
    failure = first_failure(run, job.launch, job.id, job.submission.time - _CLOCKS_S)
    if state is None and failure is None and queue.problem:
        return None
    reason = failure.error if failure else "before it trained"
    said = ended_as(state, exit_status) if state else _logged(job)
    return Judgement("failed", reason, *about, failure=failure, slurm=said)


def _unmet(job: KnownJob) -> str | None:
    """The run that a job waited for, which did not finish; None: it waited for none, or that has finished.

    Slurm removes such a job from the queue as if it were cancelled.
    """
    after = job.submission.after
    if job.queued and job.queued.reason == NEVER:
        return f"the run it waited for ({after})" if after else "the job it waited for"
    if not after:
        return None
    try:
        folder = read_folder(Path(after))
    except (BadInput, OSError):
        folder = None
    if folder and folder.state in ("finished", "running"):
        return None
    return f"the run it waited for ({after})"


def _of_folder(run: Path, folder: FolderState, known: Sequence[KnownJob], fails: bool = True) -> Judgement:
    """What the folder tells, with what Slurm says of the job of the last start.

    Args:
        run, folder, known: as `judge`.
        fails: whether to look for the first failure of a failed run.
    """
    start = folder.starts[-1] if folder.starts else {}
    job = next((one for one in reversed(known) if start in one.starts), None)
    same = [one for one in folder.starts if folder.slurm_job and one.get("slurm_job") == folder.slurm_job]
    requeues = job.requeues if job else max(0, len(same) - 1)
    if folder.state == "running":
        running = next((one for one in known if one.queued and folder.slurm_job == one.queued.number), job)
        requeues = running.requeues if running else requeues
    step = folder.step
    job_id = job.id if job else folder.slurm_job
    found = Judgement(
        folder.state, folder.reason, folder.time, step, folder.host, job_id, folder.figures, requeues
    )
    if folder.state in ("running", "finished") or not fails:
        return found
    said = None
    if job and job.queued and job.queued.ended:
        stopped = folder.state == "stopped" and job.queued.state in ("FAILED", "COMPLETED")
        quiet = stopped or (job.queued.state, job.queued.exit_status) == ("COMPLETED", 0)
        said = None if quiet else ended_as(job.queued.state, job.queued.exit_status)
    elif job and folder.state != "stopped":
        said = _logged(job)
    ended = _record(run, job).ended if job else ""
    if folder.reason and folder.reason in ended:
        ended = ""  # the same error
    said = "; ".join(part for part in (said, ended) if part) or None
    if folder.state == "stopped":
        return replace(found, slurm=said)
    launch, job_id = (job.launch, job.id) if job else (None, None)
    return replace(found, slurm=said, failure=first_failure(run, launch, job_id, _since(folder)))


def _since(folder: FolderState) -> float:
    """When the start before the last one was over: what fails later is of the last one."""
    if len(folder.starts) < 2:
        return 0.0
    before = folder.starts[-2]
    return seconds((before.get("end") or before).get("time"))


def _logged(job: KnownJob) -> str | None:
    """How the job ended by its log, in words; None: Slurm wrote nothing into it."""
    state = logged_end(last_start(read_tail(job.launch / f"{job.id}_0_log.out")))
    return ended_as(state) if state else None


def _step(folder: FolderState | None) -> int | None:
    """The step that a run that waits goes on from."""
    if folder is None:
        return None
    step = folder.step if folder.step is not None else folder.figures.step
    return max(step or 0, checkpoint_step(folder.checkpoint)) if step or folder.checkpoint else step


def _totals(folder: FolderState | None) -> Figures:
    return Figures(total=folder.figures.total) if folder else Figures()
