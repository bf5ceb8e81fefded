"""How the last start of a run ended, or that it goes on, from the run folder alone: needs no Slurm."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.heartbeat import ENDED, clock, read_heartbeat
from hpcphotoz.locks.judgement import is_held, owner_of
from hpcphotoz.locks.owner import LockOwner
from hpcphotoz.provenance import is_damaged, read_starts

# State of a run, and the exit status that stands for it.
_STATUS = {"finished": 0, "running": 0, "stopped": os.EX_TEMPFAIL, "failed": 1, "lost": 1}


@dataclass(frozen=True)
class RunStatus:
    """State of a run: "running", "finished", "stopped" (saved; the same command goes on), "failed" or "lost".

    "lost" is a run that ended without a record: killed, out of memory, or by a signal that came twice.
    """

    run: str  # folder
    state: str
    reason: str | None  # why it stopped or failed; of a running one, which ranks are silent
    time: str  # of the end, or of the start if there is no end
    step: int | None  # last step; None: not recorded
    starts: int
    host: str | None  # of rank 0
    slurm_job: str | None
    checkpoint: str | None  # newest file

    @property
    def exit_status(self) -> int:
        """0: finished or running; 75: stopped; 1: failed or lost."""
        return _STATUS[self.state]

    @property
    def text(self) -> str:
        """One line for the user."""
        where = f" on {self.host}" if self.host else ""
        at = "" if self.step is None else f" at step {self.step}"
        why = f": {self.reason}" if self.reason else ""
        told = {
            "running": f"running{where} since {self.time}{at}{why}",
            "finished": f"finished{at}, {self.time}",
            "stopped": f"stopped{at}, {self.time}{why}; saved: the same command goes on",
            "failed": f"failed, {self.time}{why}",
            "lost": f"began {self.time}{where}, ended without a record: killed, or signalled twice",
        }[self.state]
        found = f"newest checkpoint {self.checkpoint}" if self.checkpoint else "no checkpoint"
        newest = f"; {found}" if self.state in ("failed", "lost") else ""
        return f"{self.run}: {told}{newest}; starts: {self.starts}"

    @property
    def json(self) -> str:
        """The same as one JSON object."""
        return json.dumps(asdict(self) | {"exit_status": self.exit_status})


def read_status(run: Path) -> RunStatus:
    """The state of a run folder.

    Raises:
        BadInput: no run has begun in it, or its record is damaged.
        OSError: the record cannot be read.
    """
    if is_damaged(run):
        raise BadInput(
            f"{run}/provenance.json: damaged: the next start keeps it aside and begins a new record"
        )
    starts, lock = read_starts(run), run / "logs" / "lock"
    newest = max((path.name for path in (run / "checkpoints").glob("step-*.pt")), default=None)
    if is_held(lock):
        return _running(run, starts, owner_of(lock), newest)
    if not starts:
        raise BadInput(f"{run}: no training has begun in this folder: want a run folder")
    last, end = starts[-1], starts[-1].get("end") or {}
    about = end.get("reason"), end.get("time", last.get("time", "")), end.get("step")
    where = last.get("host"), last.get("slurm_job")
    return RunStatus(str(run), end.get("outcome", "lost"), *about, len(starts), *where, newest)


def _running(
    run: Path, starts: list[dict[str, Any]], owner: LockOwner | None, newest: str | None
) -> RunStatus:
    """The state of a run whose lock is held: its record may still be that of the start before."""
    last = starts[-1] if starts else {}
    where, since = (last.get("host"), last.get("slurm_job")), last.get("time", "")
    reason = step = None
    found = read_heartbeat(run)
    if owner:
        where, since = (owner.host, owner.slurm_job), owner.since
        if found and [(beat.host, beat.pid) for beat in found.beats[:1]] != [(owner.host, owner.pid)]:
            found = None  # of the start before
    if found and found.beats:
        step = found.beats[0].step
        # Rank 0 writes the file: no beat in it is older than its own.
        first = [each for each in found.beats if each.rank == 0 and each.phase != ENDED]
        hung = found.silent() if found.is_fresh() else first or found.silent()
        reason = "; ".join(f"{each.name} is silent since {clock(each.time)}" for each in hung) or None
    return RunStatus(str(run), "running", reason, since, step, len(starts), *where, newest)
