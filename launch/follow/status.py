"""State of a run, from its folder and from what Slurm knows of its jobs."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.failures import Failure
from hpcphotoz.launch.follow.folder_state import read_folder
from hpcphotoz.launch.follow.judgement import judge
from hpcphotoz.launch.follow.progress import Figures
from hpcphotoz.launch.follow.queue import Queue, read_queue
from hpcphotoz.launch.follow.reasons import stopped_because
from hpcphotoz.launch.follow.submissions import Submission, read_submissions
from hpcphotoz.output import number_of

# State of a run, and the exit status that stands for it.
_STATUS = {
    **dict.fromkeys(("finished", "running", "pending", "requeued"), 0),
    "stopped": os.EX_TEMPFAIL,
    **dict.fromkeys(("failed", "lost"), 1),
}
GOES_ON = ("running", "pending", "requeued")


@dataclass(frozen=True)
class RunStatus:
    """State of a run.

    "pending" (its job waits and has not begun), "running", "requeued" (stopped, saved, and waits again),
    "finished", "stopped" (saved; the same command goes on), "failed" or "lost" (ended without a record:
    killed, out of memory, or by a signal that came twice).
    """

    run: str  # folder
    state: str
    reason: str | None  # why it waits, stopped or failed; of a running one, which ranks are silent
    time: str  # of the end, or of the start or submission if there is no end
    step: int | None  # last step; None: not recorded
    starts: int
    host: str | None  # of rank 0
    slurm_job: str | None
    checkpoint: str | None  # newest file
    figures: Figures = field(default_factory=Figures)
    requeues: int = 0  # of the job
    expected: str | None = None  # start of a waiting job, as Slurm estimates it
    later: tuple[str, ...] = ()  # jobs of the run that wait for this one
    failure: Failure | None = None  # of the first rank that failed
    slurm: str | None = None  # how the job ended, in words
    command: tuple[str, ...] = ()  # that was launched, and goes on with the run
    problem: str = ""  # why Slurm could not be asked, where its answer would matter

    @property
    def exit_status(self) -> int:
        """0: finished, running or waiting; 75: stopped; 1: failed or lost."""
        return _STATUS[self.state]

    @property
    def goes_on(self) -> bool:
        """Whether it runs or waits."""
        return self.state in GOES_ON

    @property
    def text(self) -> str:
        """One line for the user."""
        where = f" on {self.host}" if self.host else ""
        at = f" {self.figures.text(self.step)}" if self.step is not None else ""
        reason = stopped_because(self.reason)
        why = f": {reason}" if reason else ""
        job = f"job {self.slurm_job}"
        own = f"; {job}" if self.slurm_job and job not in why else ""
        told = {
            "running": f"running{where} since {self.time}{at}{why}{own}",
            "pending": f"pending since {self.time}{at}: {job} {self.reason}",
            "requeued": f"requeued{at}: {job} {self.reason}",
            "finished": f"finished{at}, {self.time}",
            "stopped": f"stopped{at}, {self.time}{why}"
            + ("; saved" if self.starts else "")
            + (": the same command goes on" if self.starts and not self.command else ""),
            "failed": f"failed{at if self.slurm else ''}, {self.time}{why}",
            "lost": f"began {self.time}{where}, ended without a record: killed, or signalled twice"
            if self.starts
            else f"submitted {self.time}{why}",
        }[self.state]
        if self.expected:
            told += f"; expected to begin {self.expected}"
        if self.slurm:
            told += f"; {job} {self.slurm}"
        if self.requeues:
            told += f"; requeued {'once' if self.requeues == 1 else f'{self.requeues} times'}"
        found = f"newest checkpoint {self.checkpoint}" if self.checkpoint else "no checkpoint"
        newest = f"; {found}" if self.state in ("failed", "lost") else ""
        after = f"; then {number_of(len(self.later), 'job')} of it: {', '.join(self.later)}"
        starts = f"; starts: {self.starts}" if self.starts else ""
        return f"{self.run}: {told}{newest}{after if self.later else ''}{starts}"

    @property
    def short(self) -> str:
        """One line of a list: state, steps, folder, and why if it does not run."""
        of = f"/{self.figures.total}" if self.figures.total else ""
        steps = "-" if self.step is None else f"{self.step}{of}"
        rate = self.figures.images_per_s
        job = f"job {self.slurm_job}" if self.slurm_job else ""
        parts = [
            job if job not in f"{self.reason}" and not self.slurm else None,
            stopped_because(self.reason),
            f"{job} {self.slurm}" if self.slurm else None,
            None if rate is None or not self.goes_on else f"{rate:,.0f} images/s",
        ]
        why = "; ".join(part for part in parts if part)
        return f"{self.state:<9} {steps:>15}  {self.run}{f'  ({why})' if why else ''}"

    @property
    def lines(self) -> list[str]:
        """The line, the command that goes on, and the traceback of the rank that failed first."""
        resumes = self.command and self.state in ("stopped", "failed", "lost")
        again = [f"resume with: {shlex.join(self.command)}"] if resumes else []
        return [self.text, *again, *self.failure_lines]

    @property
    def failure_lines(self) -> list[str]:
        """Who failed first, with the traceback; empty: not known, or a mistake of the user."""
        if self.failure is None or (self.failure.bad_input and self.failure.error in (self.reason or "")):
            return []
        head, *more = self.failure.lines
        return [f"first to fail: {head}", *more]

    @property
    def json(self) -> str:
        """The same as one JSON object."""
        return json.dumps(self.facts)

    @property
    def facts(self) -> dict[str, object]:
        """The content of the JSON object."""
        return asdict(self) | {"exit_status": self.exit_status}


def read_status(run: Path, queue: Queue | None = None) -> RunStatus:
    """The state of a run folder.

    Args:
        run: run folder.
        queue: what Slurm knows of its jobs; None: Slurm is asked.

    Raises:
        BadInput: no run has begun in it and none is submitted, or its record is damaged.
        OSError: the record cannot be read.
    """
    folder, submissions = read_folder(run), read_submissions(run)
    if folder is None and not submissions:
        raise BadInput(f"{run}: no training has begun in this folder: want a run folder")
    queue = queue or read_queue(one.job_id for one in submissions)
    found = judge(run, folder, submissions, queue)
    starts = len(folder.starts) if folder else 0
    problem = "" if found.state in ("running", "finished") else queue.problem
    about = found.state, found.reason, found.time, found.step, starts, found.host, found.job_id
    command = _command(submissions, folder.starts if folder else [])
    more = found.requeues, found.expected, found.later, found.failure, found.slurm, command, problem
    figures = found.figures if found.state == "running" else replace(found.figures, eta_s=None)
    return RunStatus(str(run), *about, folder.checkpoint if folder else None, figures, *more)


def _command(submissions: Sequence[Submission], starts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The command that was last launched for a run, as the user types it; empty: not recorded."""
    recorded = [one.command for one in reversed(submissions)]
    recorded += [tuple(map(str, start.get("command") or ())) for start in reversed(starts)]
    for program, *words in filter(None, recorded):
        name, package = os.path.basename(program), os.path.basename(os.path.dirname(program))
        if name == "hpcphotoz" or (name, package) == ("__main__.py", "hpcphotoz"):
            return "hpcphotoz", *words
    return ()


def read_statuses(runs: Sequence[Path]) -> tuple[list[RunStatus], str]:
    """States of runs, with one question to Slurm for all; those that cannot be told are left out.

    Returns:
        The states, and why Slurm could not be asked, if so.
    """
    jobs: list[Submission] = [one for run in runs for one in read_submissions(run)]
    queue, found = read_queue(one.job_id for one in jobs), []
    for run in runs:
        try:
            found.append(read_status(run, queue))
        except (BadInput, OSError):
            continue
    return found, queue.problem


def have_ended(states: Sequence[RunStatus], answered: bool, problem: str) -> bool:
    """Whether runs that are looked at again and again have all ended.

    Args:
        states: as `read_statuses` gives them.
        answered: whether Slurm has answered before: if it does not now, a run that has stopped may be queued.
        problem: why Slurm could not be asked now; "": it has answered.
    """
    if answered and problem and any(state.state != "finished" for state in states):
        return False
    return not any(state.goes_on for state in states)
