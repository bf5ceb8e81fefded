"""Submits the doctor's job, waits for it, and collects the facts of its nodes."""

import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from hpcphotoz.atomic import write_text
from hpcphotoz.launch import snapshot
from hpcphotoz.launch.doctor.facts import JobFacts, NodeFacts
from hpcphotoz.launch.doctor.node import LOGIN_CLOCK, DoctorJob, beat_path, facts_path, read_time
from hpcphotoz.launch.doctor.slurm_facts import fields, run
from hpcphotoz.launch.doctor.slurm_rules import NEVER_STARTS
from hpcphotoz.launch.environment import outside_any_job, overriding_variables
from hpcphotoz.launch.executor import slurm_executor
from hpcphotoz.launch.follow.reasons import ENDED
from hpcphotoz.launch.preparation import import_submitit
from hpcphotoz.launch.request.plan import LaunchPlan

_POLL_S, _ASK_S = 0.2, 2.0  # of the shared folder; of the controller
_CHARACTERS = 300  # of the last line of a log


def examine_nodes(
    plan: LaunchPlan, run_folder: Path, wait_s: float, report: Callable[[str], None]
) -> tuple[list[NodeFacts], JobFacts]:
    """Examine nodes by a job of one rank a node.

    The job's folder is made in `run_folder`, and removed at the end; an interrupt cancels the job.

    Args:
        plan: what to ask the cluster for; one task a node.
        run_folder: where runs write; it is there.
        wait_s: seconds to wait for the job.
        report: called with a line when the job's state changes.

    Returns:
        Facts of the nodes that wrote any, in order of rank, and what became of the job.
    """
    submitit = import_submitit()
    with _job_folder(run_folder) as folder:
        code = snapshot.take(folder)
        job = DoctorJob(str(folder), str(run_folder), str(code), plan.cpus_per_task, plan.gpus)
        executor = slurm_executor(plan, folder, code, [run_folder])
        executor.update_parameters(teardown=None)  # whatever happens, this job is not requeued
        script = executor._make_submission_file_text(executor._submitit_command_str, "")
        try:
            hidden = overriding_variables(script, os.environ)
            with outside_any_job(hidden), contextlib.redirect_stderr(io.StringIO()):
                job_id = str(executor.submit(job).job_id)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            return [], JobFacts(refusal=" ".join(str(error).split()), nodes=plan.nodes)
        watch = _Watch(job_id, folder, plan.nodes)
        try:
            watch.until_end(wait_s, report)
        finally:
            if not watch.ended:
                run(["scancel", job_id])
        nodes = [node for rank in range(plan.nodes) if (node := _facts(folder, rank, watch))]
        whole = {node.rank for node in nodes if node.stage == "end"}
        lines = {rank: _last_line(folder, job_id, rank) for rank in set(range(plan.nodes)) - whole}
        own = not (plan.python or plan.conda or plan.container)
        return nodes, watch.job_facts.model_copy(
            update={"wait_s": wait_s, "last_lines": lines, "own_python": own}
        )


class _Watch:
    """Follows a job, and gives its nodes the login node's time."""

    def __init__(self, job_id: str, folder: Path, nodes: int) -> None:
        self.job_id, self.folder, self.ended = job_id, folder, False
        self.facts: dict[str, str] = {}  # scontrol show job
        self._nodes = nodes
        self.at_least_ahead_s = [-1e9] * nodes  # by which a node's clock is ahead of this one

    @property
    def job_facts(self) -> JobFacts:
        """What became of the job, as Slurm tells it."""
        return JobFacts(
            job_id=self.job_id,
            state=self.facts.get("JobState", "UNKNOWN"),
            reason=self.facts.get("Reason", "None"),
            has_ended=self.ended,
            may_requeue=self.facts.get("Requeue") != "0",
            nodes=self._nodes,
        )

    def until_end(self, wait_s: float, report: Callable[[str], None]) -> None:
        """Wait until the job has ended, at most `wait_s` seconds."""
        end, ask_at, told = time.monotonic() + wait_s, 0.0, ""
        while not self.ended:
            if time.monotonic() >= ask_at:
                ask_at = time.monotonic() + _ASK_S
                self._ask()
                state, reason = self.facts.get("JobState", "UNKNOWN"), self.facts.get("Reason", "None")
                text = f"job {self.job_id}: {state.lower()}" + (f" ({reason})" if reason != "None" else "")
                if text != told:
                    report(text)
                told = text
                if time.monotonic() > end or (state == "PENDING" and reason in NEVER_STARTS):
                    break
            self._exchange_times()
            time.sleep(_POLL_S)

    def _ask(self) -> None:
        text, error = run(["scontrol", "show", "job", "--oneliner", self.job_id])
        if error and "Invalid job id" in error:  # ended some minutes ago
            self.ended = True
        elif not error:  # else the controller is busy: ask again
            self.facts = fields(text)
            self.ended = self.facts.get("JobState") in ENDED

    def _exchange_times(self) -> None:
        """Write this clock, and read those of the nodes: what is read was written earlier."""
        with contextlib.suppress(OSError):  # a full disk is found by its own check
            write_text(self.folder / LOGIN_CLOCK, str(time.time()))
        for rank, before in enumerate(self.at_least_ahead_s):
            if (sent := read_time(beat_path(self.folder, rank))) is not None:
                self.at_least_ahead_s[rank] = max(before, sent - time.time())


def _facts(folder: Path, rank: int, watch: _Watch) -> NodeFacts | None:
    try:
        found = NodeFacts.model_validate_json(facts_path(folder, rank).read_bytes())
    except (OSError, ValidationError):
        return None  # `judge_job` tells that this rank wrote none
    both = watch.at_least_ahead_s[rank], found.login_ahead_s[1]
    return found.model_copy(update={"login_ahead_s": both})


def _last_line(folder: Path, job_id: str, rank: int) -> str:
    """The last line that a rank printed, or what it means that there is none."""
    for path in (folder / f"{job_id}_{rank}_log.out", folder / f"{job_id}_0_log.out"):
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").strip().splitlines()
            said = [line.strip() for line in lines if "srun: " not in line and "slurmstepd: " not in line]
            if said or lines:
                return f"its last line: {(said or lines)[-1][-_CHARACTERS:]}"
    return f"no output of it is in {folder.parent}: do the nodes mount this folder?"


@contextlib.contextmanager
def _job_folder(run_folder: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hpcphotoz-doctor-", dir=run_folder)).absolute()
    try:
        yield folder
    finally:
        for _ in range(25):  # Slurm may still write a log, and NFS keep a removed file that is open
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(_POLL_S)
