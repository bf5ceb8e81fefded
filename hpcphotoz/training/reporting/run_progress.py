"""What a user wants to know of a run while it trains: step, epoch, latest figures, time to the end."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from hpcphotoz.output import number_of


class RunProgress:
    """Follows a run: the steps taken, and the latest lines of metrics.jsonl.

    Args:
        name: of the run.
        step: optimiser steps that were taken before this process.
        last_step: after which this process ends.
        batches: steps of an epoch.
        epochs: of the run.
        clock: gives seconds.
    """

    def __init__(
        self,
        name: str,
        step: int,
        last_step: int,
        batches: int,
        epochs: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.step, self.last_step = name, step, last_step
        self._batches, self._epochs, self.clock = batches, epochs, clock
        self._first, self._since = step + 1, 0.0
        self.training: Mapping[str, Any] = {}
        self.validation: Mapping[str, Any] = {}

    def reach(self, step: int) -> None:
        """Take in that `step` optimiser steps were taken; fewer than before change nothing."""
        if self.step < self._first <= step:  # compilers make the first step longer than those that follow
            self._since = self.clock()
        self.step = max(self.step, step)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in a line of metrics.jsonl; of saves and events the step alone."""
        self.reach(line["step"])
        if "part" not in line:
            self.training = line
        elif line["part"] == "validation":
            self.validation = line

    @property
    def eta_s(self) -> float | None:
        """Seconds to the last step at the pace since the first one, validations and saves included.

        None: two steps have not been taken yet.
        """
        taken = self.step - self._first
        if taken < 1:
            return None
        return (self.clock() - self._since) / taken * (self.last_step - self.step)

    @property
    def epoch_text(self) -> str:
        """The epoch of the last step, counted from 1."""
        return f"epoch {max(self.step - 1, 0) // self._batches + 1} of {self._epochs}"

    @property
    def step_text(self) -> str:
        """The last step."""
        return f"step {self.step} of {self.last_step}"

    @property
    def eta_text(self) -> str:
        """The time to the last step."""
        return "ETA unknown" if self.eta_s is None else f"ETA {timedelta(seconds=round(self.eta_s))}"

    @property
    def training_text(self) -> str:
        """Loss, rate and data wait of the latest line; "": there is none yet."""
        line = self.training
        if not line:
            return ""
        parts = {"clean": line.get("loss_clean"), "attacked": line.get("loss_adversarial")}
        named = ", ".join(f"{name} {loss:.4f}" for name, loss in parts.items() if loss is not None)
        split = f" ({named})" if None not in parts.values() else ""
        rate = f"{line['images_per_s']:,.0f} images/s"
        loss = "none" if line["loss"] is None else f"{line['loss']:.4f}"
        n = line.get("skipped_steps")
        skipped = f", {number_of(n, 'step')} skipped" if n else ""
        return f"loss {loss}{split}{skipped}, {rate}, data wait {100 * line['data_wait']:.1f} %"

    @property
    def validation_text(self) -> str:
        """sigma_MAD of the latest validation; "": there is none yet."""
        return validation_text(self.validation) if "sigma_mad" in self.validation else ""


def validation_text(line: Mapping[str, Any], *more: str) -> str:
    """sigma_MAD, clean and under attack, of a line of a validation, and the figures of the keys `more`."""
    names = {"sigma_mad": "sigma_MAD", "sigma_mad_adversarial": "under attack", **{key: key for key in more}}
    found = [f"{name} {line[key]:.4f}" for key, name in names.items() if line.get(key) is not None]
    return f"validation of epoch {line['epoch'] + 1}: {', '.join(found)}"
