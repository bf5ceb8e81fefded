"""What has been seen and waited for since the last line of metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

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
