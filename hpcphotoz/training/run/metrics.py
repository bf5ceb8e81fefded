"""Losses, object counts and times between two lines of metrics.jsonl."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.run.timers import WAIT, Timers


class MetricsAccumulator:
    """Adds up losses, object counts and times between two lines of metrics.jsonl."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        # Over all ranks: loss and number of clean objects, of attacked objects; number of damaged ones. Then
        # gradient norms: their sum, number and maximum; number of skipped steps.
        self.sums = torch.zeros(9, dtype=torch.float64)
        self.waiting_for = ""  # what this rank is waiting for; "": it is not waiting
        self._seen, self._waited_for_ranks, self._since = 0, 0.0, time.monotonic()
        self._waited, self._busy = 0.0, 0.0  # values of `RankLoader` and `Stream` at the last line

    def add(self, sums: Tensor, norm: float, objects: int) -> None:
        """Add a step.

        Args:
            sums: (5,) float64, the first of `self.sums`.
            norm: of the gradients.
            objects: number of objects in the global batch.
        """
        self.sums[:5] += sums
        self.sums[5] += norm
        self.sums[6] += 1
        self.sums[7] = max(self.sums[7].item(), norm)
        self._seen += objects

    def add_skipped(self, damaged: float, objects: int) -> None:
        """Add a step that was skipped: number of damaged objects, of objects in the global batch."""
        self.sums[4] += damaged
        self.sums[8] += 1
        self._seen += objects

    def exclude_time(self, seconds: float) -> None:
        """Leave some seconds out of the training rate."""
        self._since += seconds

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Context that times a wait for other ranks, and says what is waited for."""
        start, self.waiting_for = time.monotonic(), what
        with self._timers(WAIT):
            yield
        self._waited_for_ranks += time.monotonic() - start
        self.waiting_for = ""

    def summarise(self, loader: RankLoader, with_rank_wait: bool) -> dict[str, float | int | None]:
        """The figures since the last line; starts the next interval.

        Args:
            loader: loader of the training objects.
            with_rank_wait: include the fraction of time spent waiting for other ranks.
        """
        clean, n_clean, attacked, n_attacked, damaged, norms, n_norms, greatest, skipped = self.sums.tolist()
        now, busy, stream = time.monotonic(), loader.train.busy_s - self._busy, loader.train
        seconds = now - self._since
        figures: dict[str, float | int | None] = {
            "loss": (clean + attacked) / (n_clean + n_attacked) if n_clean + n_attacked else None,
            "loss_clean": clean / n_clean if n_clean else None,
            "loss_adversarial": attacked / n_attacked if n_attacked else None,
            "images_per_s": self._seen / seconds,
            "data_wait": (loader.waited_s - self._waited) / seconds,
            # How many times faster the reading threads could deliver; None: they read nothing.
            "loader_headroom": seconds * stream.threads / busy if busy else None,
            "skipped": int(damaged),
            "lost": stream.census.lost_rows(stream.manifest),
            "gradient_norm": norms / n_norms if n_norms else None,
            "gradient_norm_max": greatest if n_norms else None,
            "skipped_steps": int(skipped),
        }
        if with_rank_wait:
            figures["rank_wait"] = self._waited_for_ranks / seconds
        self.sums.zero_()
        self._seen, self._waited_for_ranks, self._since = 0, 0.0, now
        self._waited, self._busy = loader.waited_s, stream.busy_s
        return figures
