"""The requeues of one job: at which step it stopped, why, and on which node; needs no torch.

They are in RUN/launch/<job>_requeues.json, which rank 0 (a stop that saved) or the batch script (a failed
step) replaces before it requeues the job:

    {"requeues": [{"restart": 0, "step": 120, "reason": "killed", "node": "n2", "time": "...", "error": ""}],
     "excluded": ["n2"], "ended": ""}

`ended` says why the job was not requeued.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput

STOPPED, KILLED, FAILED, NODE_FAILED = "stopped", "killed", "failed", "node failed"


class NoProgress(Exception):
    """A job was requeued too many times in a row without progress."""


@dataclass(frozen=True)
class Requeue:
    """One requeue of a job."""

    restart: int  # the start that ended: 0 is the first
    step: int | None  # of the newest checkpoint; None: not known, Slurm itself has requeued the job
    reason: str  # one of the constants of this module
    node: str | None = None  # Slurm's name of the node that failed first; None: none did, or not known
    error: str = ""  # one line; "": there was no Python error
    time: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))


@dataclass(frozen=True)
class RequeueRecord:
    """The requeues of one job, in order, the nodes that it no longer uses, and why it ended."""

    requeues: tuple[Requeue, ...] = ()
    excluded: tuple[str, ...] = ()
    ended: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record of a job; an empty one if there is no file.

        Raises:
            BadInput: the file is damaged.
        """
        try:
            content = json.loads(path.read_bytes())
            requeues = tuple(Requeue(**entry) for entry in content["requeues"])
            return cls(requeues, tuple(content["excluded"]), content["ended"])
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{path}: damaged: remove it; the count of requeues begins anew") from None

    def write(self, path: Path) -> None:
        """Replace the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)  # a run of a sweep has no launch folder of its own
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    def find(self, restart: int) -> Requeue | None:
        """The requeue that followed a start."""
        return next((entry for entry in self.requeues if entry.restart == restart), None)

    def add(self, entry: Requeue) -> Self:
        """The record with a further requeue, in the place of one of the same start."""
        others = [each for each in self.requeues if each.restart != entry.restart]
        return replace(self, requeues=tuple(sorted([*others, entry], key=lambda each: each.restart)))

    def without_progress(self, step: int) -> int:
        """The number of requeues in a row without progress, with one at `step`; 0: it has progress.

        A requeue has progress if its step is above that of the requeue before; the first one, above 0.
        """
        count = before = 0
        for at in [*(entry.step for entry in self.requeues), step]:
            if at is not None:
                count = 0 if at > before else count + 1
                before = at
        return count

    def refusal(self, step: int, max_requeues: int) -> str:
        """Why a job that stopped at `step` is not requeued, in one line; "": it is.

        Args:
            step: of the newest checkpoint.
            max_requeues: requeues in a row without progress; 0: no requeue at all.
        """
        if not max_requeues:
            return "not requeued: --max-requeues is 0; launch again to continue"
        if self.without_progress(step) <= max_requeues:
            return ""
        return (
            f"not requeued: {max_requeues} requeues in a row without progress: the newest checkpoint is "
            f"still that of step {step}; see what ends the job, and launch again to continue"
        )


def record_file(run: Path, job_id: str) -> Path:
    """Where the requeues of a job are recorded.

    Args:
        run: run folder.
        job_id: as in the names of the job's logs: "7", or "7_2" of a job array.
    """
    return run / "launch" / f"{job_id}_requeues.json"


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint of a run folder, by its name; 0: there is none."""
    names = [path.stem.removeprefix("step-") for path in (run / "checkpoints").glob("step-*.pt")]
    return max((int(name) for name in names if name.isdigit()), default=0)
