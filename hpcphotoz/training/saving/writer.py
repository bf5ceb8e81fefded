"""Writes checkpoints in a thread beside training: one copy in memory, one write at a time."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from hpcphotoz.atomic import flush_file, fsync_folder
from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.checkpoint import BEST, KEPT, NEWEST, State, path_of
from hpcphotoz.training.saving.failed_write import message
from hpcphotoz.training.saving.host_copy import HostCopy
from hpcphotoz.training.saving.temporary import drop_abandoned, owner
from hpcphotoz.training.saving.weights_file import save_weights, step_of_weights

WEIGHTS = "weights"  # folder of a run: last.safetensors and best.safetensors
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveFigures:
    """What a save has cost."""

    step: int
    folder: str  # of the run folder, where the checkpoint is
    bytes: int
    blocked_s: float  # for which training stood still
    waited_s: float  # part of it: for the end of the save before
    total_s: float  # from the call until the files were on the disk


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread, and the weights of each as safetensors.

    `save` returns when the state is copied. A second save waits until the first is written: there is one
    copy, and no queue. A write that fails sets `problem`, and nothing is written after it.

        training  ─ step ─ copy ─ step ─ step ─ step ───────── step ─ copy ─ ...
        thread              └─ checksum, write, flush, rename, remove surplus ─┘

    Args:
        run: run folder.
        keep: number of newest checkpoints that stay in `checkpoints`.
        keep_hours: hours between checkpoints that stay for good, in `kept`; 0: none.
    """

    def __init__(self, run: Path, keep: int, keep_hours: float) -> None:
        self._run, self._keep, self._keep_hours = run, keep, keep_hours
        self._copy = HostCopy()
        self._held: State | None = None  # what the copy holds
        self._thread: threading.Thread | None = None
        self._verified = set[Path]()  # checkpoints that are known to load
        self._figures: list[SaveFigures] = []
        self._with_weights = find_spec("safetensors") is not None
        if not self._with_weights:
            _log.info("no weights as safetensors: pip install 'hpcphotoz[export]'%s", self._earlier_weights())
        self.problem: str | None = None
        self.longest_s = 0.0  # that a save has taken so far

    def save(self, state: Callable[[], State], step: int, best: bool = False) -> None:
        """Start to save the state after a step as the newest checkpoint, or as the best one.

        Args:
            state: gives what a checkpoint holds; it may be changed when this method has returned.
            step: number of optimiser steps taken.
            best: save in `best` in the place of the one before, not in `checkpoints`.
        """
        asked = time.monotonic()
        self.wait()
        if self.problem is not None:
            return
        waited = time.monotonic() - asked
        if self._held is None or self._held["step"] != step:
            self._held = None
            self._held = self._copy.of(state())
        blocked = time.monotonic() - asked
        given = self._held, BEST if best else NEWEST, asked, blocked, waited
        self._thread = threading.Thread(target=self._work, args=given, name="checkpoint")
        self._thread.start()

    def finish(self, state: Callable[[], State], step: int, best: bool) -> None:
        """Write what a process that was killed in the save after a step has left out; waits for it.

        Args:
            state, step: as `save`, of the checkpoint from which a run goes on.
            best: whether it is the best one.

        Raises:
            BadInput: it cannot be written.
        """
        of_newest, of_best = (
            step_of_weights(self._run / WEIGHTS / f"{name}.safetensors") if self._with_weights else step
            for name in ("last", "best")
        )
        # Weights of a later step belong to a checkpoint that is damaged: they are all that is left of it.
        if path_of(self._run, NEWEST, step).exists() and (of_newest is None or of_newest < step):
            self._write_weights(state(), "last")
        steps = map(checkpoint.step_of, checkpoint.in_folder(self._run / BEST))
        whole = of_best == step == min(steps, default=None)
        if best and not whole and (of_best is None or of_best <= step):
            self.save(state, step, best=True)
            self.wait()
        if self.problem is not None:
            raise BadInput(self.problem)

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is on the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def figures(self) -> list[SaveFigures]:
        """What the saves have cost that ended since the last call."""
        return [self._figures.pop(0) for _ in range(len(self._figures))]

    def _work(self, state: State, folder: str, asked: float, blocked: float, waited: float) -> None:
        path = path_of(self._run, folder, state["step"])
        try:
            self._copy.wait()
            self._flush_metrics()
            if folder == BEST:
                self._save_best(path, state)
            else:
                checkpoint.save(self._run, state, self._keep, self._verified)
                self._keep_for_good(path, state)
            size, total = path.stat().st_size, time.monotonic() - asked
        except BadInput as error:
            self.problem = str(error)
            return
        except Exception as error:  # an exception in a thread would be printed, and training would go on
            _log.exception("%s: cannot be saved", path)
            self.problem = f"{path}: cannot save the checkpoint: {type(error).__name__}: {first_line(error)}"
            return
        self.longest_s = max(self.longest_s, total)
        self._figures.append(SaveFigures(state["step"], folder, size, blocked, waited, total))

    def _flush_metrics(self) -> None:
        """Flush the lines before a checkpoint to the disk: a resume from it does not write them again."""
        path = self._run / "metrics.jsonl"
        if path.exists():
            flush_file(path)

    def _save_best(self, path: Path, state: State) -> None:
        self._link(path_of(self._run, NEWEST, state["step"]), path, state)
        self._write_weights(state, "best")
        for other in checkpoint.in_folder(path.parent):
            # One of a later step is damaged, or of another process.
            if checkpoint.step_of(other) < state["step"]:
                other.unlink(missing_ok=True)
        drop_abandoned(path.parent)

    def _keep_for_good(self, path: Path, state: State) -> None:
        self._write_weights(state, "last")
        if not self._keep_hours:
            return
        folder = self._run / KEPT
        times = [other.stat().st_mtime for other in checkpoint.in_folder(folder)]
        if not times or time.time() - max(times) >= 3600 * self._keep_hours:
            self._link(path, folder / path.name, state)
        drop_abandoned(folder)

    def _link(self, source: Path, path: Path, state: State) -> None:
        """Make `path` a second name of a checkpoint, if this process wrote it and the file system can."""
        if source in self._verified:
            temporary = path.with_name(f"{path.name}.{owner()}.link.tmp")
            try:
                path.parent.mkdir(exist_ok=True)
                temporary.unlink(missing_ok=True)
                os.link(source, temporary)
                os.replace(temporary, path)
                temporary.unlink(missing_ok=True)  # still there if `path` was the same file before
                fsync_folder(path.parent)
            except OSError as error:
                _log.info("%s: no hard link (%s): written again", path, error.strerror)
            else:
                return
        checkpoint.write(self._run, path, state, self._keep, self._verified)

    def _earlier_weights(self) -> str:
        folder = self._run / WEIGHTS
        names = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
        return f" ({folder}: {names} stay as an earlier start left them)" if names else ""

    def _write_weights(self, state: State, name: str) -> None:
        if not all(isinstance(value, Tensor) for value in state["model"].values()):
            _log.info("no weights as safetensors: the network's state holds more than tensors")
            self._with_weights = False
        if not self._with_weights:
            return
        path = self._run / WEIGHTS / f"{name}.safetensors"

        def write() -> None:
            save_weights(state, self._run.resolve().name, path)

        try:
            checkpoint.with_room(self._run, self._keep, write, self._verified)
        except OSError as error:
            what, size = "cannot write the weights", checkpoint.bytes_of(state["model"])
            raise BadInput(message(path, error, "the newest checkpoint", what, size)) from None
        drop_abandoned(path.parent)
