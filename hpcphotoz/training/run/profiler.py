"""Profiles a few steps of a run: a profiler trace, and one screen with the time of each section.

Rank 0 profiles some steps after the first ones, and the run goes on. The all-reduce runs during the backward
passes and is not part of the sum. `rest` is negative if sections on two streams ran at the same time. The
rate of a step is compared with that of square matrix products in the same precision on this device; the
operations of a step are counted, not estimated.
"""

import copy
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.nn import functional

from hpcphotoz.atomic import atomic_write, write_text
from hpcphotoz.compute.cost import attack_cost_law, flops
from hpcphotoz.compute.precision import time_call
from hpcphotoz.config import Config
from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import AGREEMENT, Timers

_SKIPPED, _STEPS = 3, 5  # the first steps of a process allocate memory and choose algorithms


class StepProfiler:
    """Profiles the first steps of a process; chrome://tracing and Perfetto show the trace in `folder`.

    The timers of the step are active during the profile.
    """

    def __init__(self, folder: Path, device: torch.device, timers: Timers) -> None:
        self._folder, self._device, self._timers = folder, device, timers
        self._steps = 0
        self._rows = [0, 0]
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, acc_events=True)

    def record_step(self, batch: RankBatch) -> bool:
        """Count a step; returns whether it was the last one of the profile."""
        self._steps += 1
        if self._steps == _SKIPPED:
            self._timers.active = True
            self._profiler.start()
            self._start = self._now()
        elif self._steps > _SKIPPED:
            self._rows = [self._rows[0] + len(batch.images), self._rows[1] + len(batch.attacked)]
        if self._steps < _SKIPPED + _STEPS:
            return False
        self._seconds = self._now() - self._start
        self._profiler.stop()
        self._timers.active = False
        return True

    def end_early(self) -> str:
        """Stop the profiler when the run had too few steps; returns the message."""
        if self._timers.active:
            self._profiler.stop()
            self._timers.active = False
        return f"no profile: the run ended after {self._steps} steps, want {_SKIPPED + _STEPS}"

    def summary(
        self,
        module: nn.Module,
        attack: Callable[[nn.Module, RankBatch], object],
        batch: RankBatch,
        config: Config,
        compute: ComputeOptions,
    ) -> str:
        """Write the trace and the summary; returns the summary as text. Arguments also as `operations`."""
        self._folder.mkdir(exist_ok=True)
        with atomic_write(self._folder / "trace.json") as temporary:
            self._profiler.export_chrome_trace(str(temporary))
        seconds = self._timers.seconds()
        if not (dist.is_available() and dist.is_initialized()):
            seconds.pop(AGREEMENT, None)  # one rank: there is none to agree with
        shares = {name: s / self._seconds for name, s in seconds.items()}
        events = self._profiler.events() or []  # type: ignore[no-untyped-call]
        passed, attacked = operations(module, attack, batch)
        counted = step_operations(config, self._rows[0], self._rows[1], passed, attacked)
        rate, measured = counted / self._seconds, matrix_rate(self._device, compute.training)
        figures = {
            "steps": _STEPS,
            "step_s": self._seconds / _STEPS,
            "images_per_s_of_this_rank": self._rows[0] / self._seconds,
            "shares": {**shares, "rest": 1 - sum(shares.values())},
            "all_reduce": all_reduce_seconds(events, self._device) / self._seconds,
            "operations_per_s": rate,
            "device_operations_per_s": measured,
            "fraction_of_device": rate / measured,
            "law": attack_cost_law(config.attack.steps, config.adversarial.fraction),
        }
        write_text(self._folder / "summary.json", json.dumps(figures, indent=1) + "\n")
        text = _report(figures, compute)
        write_text(self._folder / "summary.txt", text + "\n")
        return text

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def operations(
    module: nn.Module, attack: Callable[[nn.Module, RankBatch], object], batch: RankBatch
) -> tuple[float, float]:
    """Operations per object of a forward and backward pass, and of an attack, counted on two objects.

    Args:
        module: the bare network. A copy runs: DistributedDataParallel hooks into passes of the original.
        attack: attacks the objects of a rank batch with a network.
        batch: any rank batch; the counts of an empty one are 0.
    """
    copied, two = copy.deepcopy(module), batch.first(2)
    if not len(two.images):
        return 0.0, 0.0

    def train() -> None:
        logits = copied(two.images, two.ebv)
        functional.cross_entropy(logits, logits.detach().argmax(1)).backward()  # type: ignore[no-untyped-call]

    attacked = flops(lambda: attack(copied, two)) / len(two.attacked) if len(two.attacked) else 0.0
    return flops(train) / len(two.images), attacked


def step_operations(config: Config, objects: float, m: float, passed: float, attacked: float) -> float:
    """Operations of a step: the attack, and all passes.

    Args:
        config: the objective.
        objects, m: number of objects, and of attacked ones.
        passed, attacked: operations per object, as `operations` counts them.
    """
    if config.adversarial.objective == "free":
        return passed * objects * config.attack.steps
    both = config.adversarial.objective in ("append", "consistency")
    return passed * (objects + m * both) + attacked * m


def all_reduce_seconds(events: Iterable[Any], device: torch.device) -> float:
    """Seconds during which at least one all-reduce was under way.

    The profiler lists an all-reduce several times: torch's operator, which only starts it, the range that the
    backend marks on the host, the same range on the device, and the kernels in that range. Gloo's ranges last
    from the request to the end and overlap. The union of all intervals counts each moment once.

    Args:
        events: events of a profiler, with name, device_type and time_range (us).
        device: where the gradients are: events of the device count on a GPU, ranges of the backend on a CPU.
    """
    on_cpu = device.type == "cpu"
    intervals = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if (event.device_type == DeviceType.CPU) == on_cpu
        and (event.name.endswith(":all_reduce") or (not on_cpu and "allreduce" in event.name.lower()))
    )
    covered, end = 0.0, float("-inf")
    for begin, until in intervals:
        covered += max(0.0, until - max(begin, end))
        end = max(end, until)
    return covered / 1e6


def matrix_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """Operations per second of square matrix products: the most that a device reaches in practice.

    Without a dtype the factors are float32, with TF32 if it is on.
    """
    n = 8192 if device.type == "cuda" else 2048
    dtype, own = dtype or torch.float32, torch.Generator(device)
    a = torch.randn(n, n, device=device, dtype=dtype, generator=own)
    b = a.clone()
    return 2 * n**3 / time_call(lambda: a @ b, device, rounds=5)


def _report(figures: dict[str, Any], compute: ComputeOptions) -> str:
    shares = figures["shares"]
    width = max(len(name) for name in (*shares, "all-reduce, beside"))
    lines = [
        f"profile of {figures['steps']} steps of rank 0: {1e3 * figures['step_s']:.1f} ms a step, "
        f"{figures['images_per_s_of_this_rank']:.1f} images/s"
    ]
    for name, share in sorted(shares.items(), key=lambda pair: -pair[1]):
        lines.append(f"  {name:{width}s} {100 * share:5.1f} %  {'#' * round(40 * max(share, 0))}")
    lines.append(f"  {'all-reduce, beside':{width}s} {100 * figures['all_reduce']:5.1f} %")
    precision = "bf16" if compute.training else "fp32"
    lines.append(
        f"  {figures['operations_per_s'] / 1e9:.1f} of the {figures['device_operations_per_s'] / 1e9:.1f} "
        f"GFLOP/s that {precision} matrix products reach here: {100 * figures['fraction_of_device']:.1f} %"
    )
    return "\n".join(lines)
