"""Seconds of a rank's own work in a step, without the wait for others: shows which rank is slow."""

import time

import torch
from torch import Tensor, nn

from hpcphotoz.training.run.timers import COLLECTIVES, VALIDATION, Timers


class OwnWork:
    """Measures a rank's own work: from the start of a step until its gradients are ready to be averaged.

    All ranks leave a collective at the same time, and the slowest one enters it last. DistributedDataParallel
    waits inside the backward pass: on a CPU a hook notes when the last gradient is there. On a GPU these are
    seconds of the host, which reads and launches, and waits for the device only where ranks agree: a rank
    that reads slowly shows, a slow device does not.

    Args:
        timers: sections of the step; those in which the rank waits are left out.
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        timers.listeners.append(self.begin_section)
        self._begun = self._waited_before = 0.0
        self._ready: float | None = None  # when the newest gradient of this step was there
        self._collective: float | None = None  # when the first collective of this step began
        self._total = 0.0, 0  # seconds, and steps; replaced as a whole: another thread reads it
        self._told = self._total
        self._mean: float | None = None

    def watch(self, module: nn.Module, device: torch.device, ranks: int) -> None:
        """Note when the gradients of a network are there, if several ranks train it on CPUs."""
        if device.type == "cpu" and ranks > 1:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._note)  # type: ignore[no-untyped-call]

    def begin_step(self) -> None:
        """A step begins; the one before has ended."""
        timers = self._timers
        ready = self._ready if self._ready is not None else self._collective
        if self._begun and ready is not None:
            took = ready - self._begun - (timers.waited_s - self._waited_before)
            self._total = self._total[0] + took, self._total[1] + 1
        self._begun, self._waited_before = time.monotonic(), timers.waited_s
        self._ready = self._collective = None

    def begin_section(self, name: str) -> None:
        """A section of the step begins, by its name in the timers."""
        if name == VALIDATION:
            self._begun = 0.0  # a step with a validation after it does not count
        elif name in COLLECTIVES and self._collective is None:
            self._collective = time.monotonic()

    @property
    def mean_s(self) -> float | None:
        """Mean seconds of own work of the steps since the last call, else of those before; None: no step."""
        (seconds, steps), (told_s, told) = self._total, self._told
        if steps > told:
            self._told, self._mean = (seconds, steps), (seconds - told_s) / (steps - told)
        return self._mean

    def _note(self, _: Tensor) -> None:
        self._ready = time.monotonic()
