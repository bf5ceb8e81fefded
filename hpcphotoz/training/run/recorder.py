"""Writes the metrics and checkpoints of a run on rank 0, and keeps the reason of a failed write."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import write_text
from hpcphotoz.config import Config
from hpcphotoz.errors import BadInput
from hpcphotoz.locks.lock import HeldLock
from hpcphotoz.training.reporting.run_progress import RunProgress
from hpcphotoz.training.reporting.sinks import Sinks, open_sinks
from hpcphotoz.training.reporting.view import open_view
from hpcphotoz.training.run.checkpoint import NEWEST, State
from hpcphotoz.training.saving.criterion import score
from hpcphotoz.training.saving.failed_write import explained, message
from hpcphotoz.training.saving.writer import CheckpointWriter

_log = logging.getLogger(__name__)


class RunRecorder:
    """Writes to a run folder: checkpoints, and metrics.jsonl, one JSON object per line, flushed at once.

    Lines of metrics after a resumed step are removed. A failed write sets `problem`, on which all ranks act
    after the next step. Every line goes to the sinks of `run.sinks` too. `close` must be called at the end.

    Args:
        out: run folder.
        step: step that the run continues from; 0: a new run.
        config: options of the run.
        writes: whether this is the rank that writes; on others every method does nothing.
        lock: on the run folder; nothing is written once another process has taken it over.

    Raises:
        BadInput: a line of the metrics of a continued run is damaged.
        OSError: the metrics cannot be read or written.
    """

    def __init__(
        self, out: Path, step: int, config: Config, writes: bool, lock: HeldLock | None = None
    ) -> None:
        run, self._config, self._lock = config.run, config, lock
        self._metrics = out / "metrics.jsonl"
        self.validations: list[dict[str, Any]] = []  # lines of validations that earlier processes wrote
        self._writer = CheckpointWriter(out, run.keep_checkpoints, run.keep_hours) if writes else None
        self._failed: str | None = None  # why metrics cannot be written
        self._epochs: dict[int, int] = {}  # of the checkpoints that are being written
        self._best = math.inf  # the least `score` of a validation so far
        self._best_step = 0  # of that validation, if an earlier process wrote its line
        self._earlier_save_s = 0.0  # of the last save that an earlier process wrote a line of
        self._sinks = Sinks()  # where each line goes too
        if writes:
            seen, earlier = self._keep_lines_until(step)
            self._sinks = open_sinks(config, out, step, seen, earlier)

    @property
    def problem(self) -> str | None:
        """Why metrics or a checkpoint could not be written; None: all could so far."""
        taken = self._lock.problem if self._lock else None
        return taken or self._failed or (self._writer.problem if self._writer else None)

    @property
    def save_s(self) -> float:
        """Seconds of the longest save so far, from its beginning until the files were on the disk.

        Of a run that goes on, the last save of the process before counts too.
        """
        return max(self._writer.longest_s, self._earlier_save_s) if self._writer else 0.0

    def validated(self, step: int) -> bool:
        """Whether an earlier process wrote the validation after `step`."""
        return any(line["step"] == step for line in self.validations)

    def write(self, step: int, epoch: int, **figures: Any) -> None:
        """Append a line to metrics.jsonl."""
        if self._writer is None:
            return
        self._write_saves()
        self._append_or_fail({"step": step, "epoch": epoch, **figures})

    def is_best(self, figures: Mapping[str, object]) -> bool:
        """Whether a validation is the best so far by `run.criterion`; the next is compared with it."""
        if self._writer is None:
            return False
        found = score(figures, self._config)
        if found is None:
            _log.warning("a validation without the figure of run.criterion %s", self._config.run.criterion)
        if found is None or found >= self._best:
            return False
        self._best = found
        return True

    def save(self, state: Callable[[], State], step: int, epoch: int, best: bool = False) -> None:
        """Start to save a checkpoint, as `CheckpointWriter.save`."""
        if self._writer is not None and not self.problem:
            self._epochs[step] = epoch
            self._writer.save(state, step, best)
            self._write_saves()

    def finish(self, state: Callable[[], State], step: int, epoch: int) -> None:
        """Write what is missing of the save after the step from which a run goes on.

        Raises:
            BadInput: it cannot be written.
        """
        if self._writer is not None and step:
            self._epochs[step] = epoch
            self._writer.finish(state, step, best=self._best_step == step)
            self._write_saves()

    def show(self, steps: Iterable[int], progress: RunProgress) -> Iterator[int]:
        """The same steps, shown on standard error as they are taken, with the lines that are written."""
        for line in self.validations[-1:]:
            progress.add(line)
        view = open_view(progress)
        self._sinks.append(view)
        return view.track(steps)

    def wait(self) -> None:
        """Wait until the last checkpoint is written; `problem` says whether it could be."""
        if self._writer is not None:
            self._writer.wait()
            self._write_saves()

    def close(self) -> None:
        """Wait as `wait`, and end what shows the lines elsewhere."""
        self.wait()
        self._sinks.close()

    def _write_saves(self) -> None:
        """Append a line for every checkpoint that was written since."""
        assert self._writer is not None
        for figures in self._writer.figures():
            line = {"step": figures.step, "epoch": self._epochs[figures.step], "part": "checkpoint"}
            self._append_or_fail({**line, **asdict(figures)})

    def _append_or_fail(self, values: dict[str, Any]) -> None:
        if self._failed or (self._lock and self._lock.problem):
            return
        # JSON knows no NaN and no infinity: a figure that is not finite is not known.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        try:
            self._append(finite)
        except OSError as error:
            self._failed = message(self._metrics, error, "the newest checkpoint")
        self._sinks.write(finite)

    def _append(self, values: dict[str, Any]) -> None:
        """Append a whole line, or nothing: others may follow once there is room."""
        with self._metrics.open("ab", buffering=0) as file:
            end, left = file.seek(0, os.SEEK_END), memoryview((json.dumps(values) + "\n").encode())
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise

    def _keep_lines_until(self, step: int) -> tuple[int, list[dict[str, Any]]]:
        """Drop the lines after a step.

        Returns:
            Step of the last line before, 0 if there was none; and the lines that were kept.
        """
        text = self._metrics.read_text(errors="replace") if step and self._metrics.exists() else ""
        # A killed process can leave an unfinished last line, which is written again after the resume.
        lines, kept, seen = text[: text.rfind("\n") + 1].split("\n")[:-1], [], 0
        earlier: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            if "\0" in line:  # what a power failure leaves of lines that were not on the disk yet
                _log.warning("%s: line %d is empty since a power failure: dropped", self._metrics, number)
                continue
            try:
                values = json.loads(line)
                at, validation = int(values["step"]), values.get("part") == "validation"
                if values.get("part") == "checkpoint" and values.get("folder") == NEWEST:
                    self._earlier_save_s = float(values["total_s"])
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadInput(
                    f"{self._metrics}: line {number} is damaged: delete that line, and resume"
                ) from None
            seen = max(seen, at)
            if at <= step:
                kept.append(line)
                earlier.append(values)
                if validation:
                    self.validations.append(values)
                    self._best_step = at if self.is_best(values) else self._best_step
        with explained(self._metrics):
            write_text(self._metrics, "".join(line + "\n" for line in kept))
        return seen, earlier
