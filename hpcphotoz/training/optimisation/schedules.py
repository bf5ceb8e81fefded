"""Learning rates: pure functions of the step, so that a resumed run needs no state of a schedule."""

import math

from hpcphotoz.config import Config, Optimiser

# Of one_cycle, the values of torch.optim.lr_scheduler.OneCycleLR.
_RISE = 0.3  # fraction of the steps in which the learning rate rises
_FIRST = 1 / 25  # learning rate of the first step, as a fraction of the peak
_LAST = _FIRST / 1e4  # of the last step


def learning_rate(step: int, total: int, optimiser: Optimiser) -> float:
    """Learning rate of a step.

    Args:
        step: counted from 0.
        total: steps over which the schedule is laid.
        optimiser: schedule, peak, and length of the linear warm-up, which is multiplied with the schedule.
    """
    if optimiser.schedule == "one_cycle":
        return optimiser.learning_rate * _one_cycle(step, total)
    warm = min(1.0, (step + 1) / (optimiser.warmup_steps + 1))
    if optimiser.schedule == "cosine":
        return optimiser.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))
    if optimiser.schedule == "halfway" and step >= total // 2:
        return optimiser.learning_rate * warm / 5
    return optimiser.learning_rate * warm


def _one_cycle(step: int, total: int) -> float:
    """Fraction of the peak: two halves of a cosine, up and down (Smith and Topin 2019, arXiv:1708.07120)."""
    peak = _RISE * total - 1
    if step <= peak:
        return _between(_FIRST, 1.0, step / peak)
    return _between(1.0, _LAST, (step - peak) / (total - 1 - peak))


def _between(first: float, last: float, fraction: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * fraction))


def cannot_extend(schedule: str) -> str | None:
    """Why a run with a schedule cannot be extended by more epochs; None: it can."""
    if schedule != "one_cycle":
        return None
    return "a cycle ends with its run: begin another one, with --from this run and a new --out"


def schedule_epochs(
    schedule: str, laid_over: int, epochs: int, begun_epochs: int, step: int, batches: int
) -> int:
    """Epochs over which the schedule of a continued run is laid.

    They are all epochs of the run. One that is extended goes on on the curve of its new length, as if it had
    always had it. But a learning rate that schedule `halfway` has divided by 5 does not rise again.

    Args:
        schedule: its name.
        laid_over: epochs over which it was laid when the checkpoint was saved.
        epochs, begun_epochs: epochs of the run now, and when the checkpoint was saved.
        step: optimiser steps taken.
        batches: optimiser steps of an epoch.
    """
    fallen = schedule == "halfway" and step > laid_over * batches // 2
    return laid_over if epochs == begun_epochs or fallen else epochs


def implausible_options(config: Config, rows: int, steps: int) -> list[str]:
    """Warnings about options that do not suit `rows` training objects or `steps` in all, one line each."""
    run, found = config.run, []
    if run.global_batch > rows:
        holds = f"the training part holds {rows} objects: an epoch is one step"
        found.append(f"run.global_batch {run.global_batch}: {holds}")
    warmups = {"optimiser.warmup_steps": config.optimiser.warmup_steps}
    if config.optimiser.schedule == "one_cycle":
        warmups = {}
    if config.adversarial.fraction:
        warmups["adversarial.eps_warmup_steps"] = config.adversarial.eps_warmup_steps
        warmups["adversarial.k_warmup_steps"] = config.adversarial.k_warmup_steps
    for name, length in warmups.items():
        if length > steps:
            ends = f"all {run.epochs} epochs are {steps} steps: the run ends within this warm-up"
            found.append(f"{name} {length}: {ends}")
    if config.adversarial.fraction and not config.attack.eps:
        instead = "adversarial.fraction 0 leaves them out"
        found.append(f"attack.eps 0: attacks change nothing, at their usual cost: {instead}")
    return found
