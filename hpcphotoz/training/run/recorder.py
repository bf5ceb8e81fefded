"""Writes the metrics and checkpoints of a run on rank 0, and keeps the reason of a failed write."""

import json
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint


class RunRecorder:
    """Writes to a run folder: checkpoints, and metrics.jsonl, one JSON object per line, flushed at once.

    Lines of metrics after a resumed step are removed. A failed write sets `problem`, on which all ranks act
    after the next step.

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
        self._out, self._keep, self._writes = out, keep, writes
        self._metrics, self._validated = out / "metrics.jsonl", set[int]()
        self.problem: str | None = None
        if writes:
            self._keep_lines_until(step)

    def validated(self, step: int) -> bool:
        """Whether an earlier process wrote the validation after `step`."""
        return step in self._validated

    def write(self, step: int, epoch: int, **figures: Any) -> None:
        """Append a line to metrics.jsonl."""
        if not self._writes:
            return
        try:
            self._append({"step": step, "epoch": epoch, **figures})
        except OSError as error:
            self.problem = (
                f"{self._metrics}: {error.strerror}: make room; the same command resumes from the newest "
                "checkpoint"
            )

    def save(self, state: checkpoint.State) -> None:
        """Save a checkpoint."""
        if not self._writes:
            return
        try:
            checkpoint.save(self._out, state, self._keep)
        except BadInput as error:
            self.problem = str(error)

    def _append(self, values: dict[str, Any]) -> None:
        with self._metrics.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def _keep_lines_until(self, step: int) -> None:
        text = self._metrics.read_text(errors="replace") if step and self._metrics.exists() else ""
        # A killed process can leave an unfinished last line, which is written again after the resume.
        lines, kept = text[: text.rfind("\n") + 1].splitlines(), []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                at, validation = int(values["step"]), values.get("part") == "validation"
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadInput(f"{self._metrics}: line {number} is damaged: delete it, and resume") from None
            if at <= step:
                kept.append(line)
                self._validated |= {at} if validation else set()
        write_text(self._metrics, "".join(line + "\n" for line in kept))
