"""How the last start of a run ended, or that it goes on, from the run folder alone: needs no Slurm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.heartbeat import ENDED, STARTING, clock, read_heartbeat
from hpcphotoz.launch.follow.progress import Figures, read_figures
from hpcphotoz.locks.judgement import is_held, owner_of
from hpcphotoz.locks.owner import LockOwner
from hpcphotoz.provenance import is_damaged, read_starts


@dataclass(frozen=True)
class FolderState:
    """What a run folder tells: "running", "finished", "stopped" (saved), "failed" or "lost".

    "lost" is a run that ended without a record: killed, out of memory, or by a signal that came twice.
    """

    state: str
    reason: str | None  # why it stopped or failed; of a running one, which ranks are silent
    time: str  # of the end, or of the start if there is no end
    step: int | None  # last step; None: not recorded
    starts: list[dict[str, Any]]
    host: str | None  # of rank 0
    slurm_job: str | None
    checkpoint: str | None  # newest file
    figures: Figures


def read_folder(run: Path) -> FolderState | None:
    """The state of a run folder; None: no training has begun in it.

    Raises:
        BadInput: its record is damaged.
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
        return None
    last, end = starts[-1], starts[-1].get("end") or {}
    about = end.get("reason"), end.get("time", last.get("time", "")), end.get("step")
    where = last.get("host"), last.get("slurm_job")
    figures = read_figures(run, starts)
    return FolderState(end.get("outcome", "lost"), *about, starts, *where, newest, figures)


def _running(
    run: Path, starts: list[dict[str, Any]], owner: LockOwner | None, newest: str | None
) -> FolderState:
    """The state of a run whose lock is held: its record may still be that of the start before."""
    last = starts[-1] if starts else {}
    where, since = (last.get("host"), last.get("slurm_job")), last.get("time", "")
    reason = step = None
    figures = read_figures(run, starts)
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
    begun = last if owner and (last.get("host"), last.get("pid")) == (owner.host, owner.pid) else None
    least = _resumed_step(starts, newest, begun)
    fresh = step is not None and found is not None and found.beats[0].phase != STARTING and step >= least
    figures = figures.since(last.get("step") or 0) if fresh else Figures(total=figures.total)
    if step is not None and figures.step is not None:  # rates and heartbeat are not of the same moment
        step = max(step, figures.step)
    if least and not fresh:
        step, figures = max(step or 0, least, checkpoint_step(newest)), replace(figures, resumes=True)
    return FolderState("running", reason, since, step, starts, *where, newest, figures)


def checkpoint_step(newest: str | None) -> int:
    """The step of a checkpoint by its name, such as step-00000074.pt; 0: there is none."""
    digits = (newest or "").removeprefix("step-").removesuffix(".pt")
    return int(digits) if digits.isdecimal() else 0


def _resumed_step(
    starts: Sequence[Mapping[str, Any]], newest: str | None, begun: Mapping[str, Any] | None
) -> int:
    """The step from which the present start goes on.

    Args:
        starts: the recorded ones.
        newest: file name of the newest checkpoint.
        begun: the record of the present start; None: it has none yet.
    """
    recorded = begun.get("step") if begun else None
    end = (starts[-1].get("end") or {}).get("step") if starts and begun is None else None
    if isinstance(recorded, int):
        return recorded
    return max(checkpoint_step(newest), end if isinstance(end, int) else 0)
