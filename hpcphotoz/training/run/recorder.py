"""Writes the metrics and checkpoints of a run on rank 0, and keeps the reason of a failed write."""

from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.metrics import MetricsFile


class RunRecorder:
    """Writes to a run folder. A failed write sets `problem`, on which all ranks act after the next step.

    Args:
        out: run folder.
        step: step that the run continues from; 0: a new run.
        keep: number of newest checkpoints to keep.
        writes: whether this is the rank that writes; on others every method does nothing.

    Raises:
        BadInput: a line of the metrics of a continued run is damaged.
        OSError: the metrics cannot be read or written.
    """

    def __init__(self, out: Path, step: int, keep: int, writes: bool) -> None:
        self._out, self._keep = out, keep
        self._metrics = MetricsFile(out, step) if writes else None
        self.problem: str | None = None

    def validated(self, step: int) -> bool:
        """Whether an earlier process wrote the validation after `step`."""
        return self._metrics is not None and self._metrics.validated(step)

    def write(self, step: int, epoch: int, **figures: Any) -> None:
        """Append a line to metrics.jsonl."""
        if self._metrics is None:
            return
        try:
            self._metrics.write(step=step, epoch=epoch, **figures)
        except OSError as error:
            self.problem = (
                f"{self._out / 'metrics.jsonl'}: {error.strerror}: make room; the same command resumes from "
                "the newest checkpoint"
            )

    def save(self, state: checkpoint.State) -> None:
        """Save a checkpoint."""
        if self._metrics is None:
            return
        try:
            checkpoint.save(self._out, state, self._keep)
        except BadInput as error:
            self.problem = str(error)
