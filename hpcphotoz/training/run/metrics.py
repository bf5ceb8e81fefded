"""Losses, object counts and times between two lines of metrics.jsonl, and that file."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.run.timers import Timers


class MetricsAccumulator:
    """Adds up losses, objects and times between two lines of metrics.

    Args:
        timers: times the waits for other ranks.
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        # All ranks: loss and number of clean, of attacked objects; skipped.
        self.sums = torch.zeros(5, dtype=torch.float64)
        self.waiting_for = ""  # what this rank waits for just now
        self._seen, self._waited_for_ranks, self._since = 0, 0.0, time.monotonic()
        self._waited, self._busy = 0.0, 0.0  # as `RankLoader` and `Stream` had them at the last line

    def add(self, sums: Tensor, objects: int) -> None:
        """A step: (5,) float64 as `sums`, and the objects of its global batch."""
        self.sums += sums
        self._seen += objects

    def exclude_time(self, seconds: float) -> None:
        """Time that is not part of the training rate."""
        self._since += seconds

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Time spent waiting for other ranks."""
        start, self.waiting_for = time.monotonic(), what
        with self._timers("wait for other ranks"):
            yield
        self._waited_for_ranks += time.monotonic() - start
        self.waiting_for = ""

    def summarise(self, loader: RankLoader, with_rank_wait: bool) -> dict[str, float | int | None]:
        """Figures since the last line, then start again; `with_rank_wait`: also the wait for attackers."""
        clean, n_clean, attacked, n_attacked, skipped = self.sums.tolist()
        now, busy, stream = time.monotonic(), loader.train.busy_s - self._busy, loader.train
        seconds = now - self._since
        figures: dict[str, float | int | None] = {
            "loss": (clean + attacked) / max(n_clean + n_attacked, 1),
            "loss_clean": clean / n_clean if n_clean else None,
            "loss_adversarial": attacked / n_attacked if n_attacked else None,
            "images_per_s": self._seen / seconds,
            "data_wait": (loader.waited_s - self._waited) / seconds,
            # How many times faster the reading threads could deliver; None: nothing was read since.
            "loader_headroom": seconds * stream.threads / busy if busy else None,
            "skipped": int(skipped),
            "lost": stream.census.lost_rows(stream.manifest),
        }
        if with_rank_wait:
            figures["rank_wait"] = self._waited_for_ranks / seconds
        self.sums.zero_()
        self._seen, self._waited_for_ranks, self._since = 0, 0.0, now
        self._waited, self._busy = loader.waited_s, stream.busy_s
        return figures


class MetricsFile:
    """metrics.jsonl: one JSON object a line, flushed as written; lines after a resumed step are dropped.

    Args:
        run: run folder.
        step: step the run continues from; 0: a new run.

    Raises:
        BadInput: a line of a run that continues is none of ours.
        OSError: the file cannot be read or written.
    """

    def __init__(self, run: Path, step: int) -> None:
        self._path = run / "metrics.jsonl"
        self._validated, kept = set[int](), []
        for number, line in enumerate(self._lines() if step else (), 1):
            try:
                values = json.loads(line)
                at, validation = int(values["step"]), values.get("part") == "validation"
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadInput(f"{self._path}: line {number} is damaged: delete it, and resume") from None
            if at <= step:
                kept.append(line)
                self._validated |= {at} if validation else set()
        write_text(self._path, "".join(line + "\n" for line in kept))

    def validated(self, step: int) -> bool:
        """Whether an earlier process wrote the validation after `step`."""
        return step in self._validated

    def write(self, **values: Any) -> None:
        """Append one line.

        Raises:
            OSError: it cannot be written, as where the disk is full.
        """
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def _lines(self) -> list[str]:
        # A killed process can leave its last line without an end: not JSON, and written again after the
        # resume.
        text = self._path.read_text(errors="replace") if self._path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()
