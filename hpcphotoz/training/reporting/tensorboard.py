"""Writes the lines of metrics.jsonl as scalars for TensorBoard; needs the package tensorboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcphotoz.training.reporting.scalars import scalars

FOLDER = "tensorboard"  # of a run


class TensorBoardSink:
    """Scalars `training/KEY`, `validation/KEY`, ... in RUN/tensorboard, at the step of their line.

    A start hides what earlier ones have written of the steps that come again, also from the first step on.

    Args:
        out: run folder.
        step: from which the run goes on.
    """

    name = "TensorBoard"

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        make: Any = SummaryWriter  # torch gives it no types
        self._writer = make(str(out / FOLDER), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Write every number of a line but its step."""
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
