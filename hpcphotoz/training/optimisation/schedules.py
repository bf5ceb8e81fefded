"""Learning rates: pure functions of the step, so that a resumed run needs no state of a schedule."""

import math

from hpcphotoz.config import Config, Optimiser


def learning_rate(step: int, total: int, optimiser: Optimiser) -> float:
    """Learning rate of a step.

    Args:
        step: counted from 0.
        total: steps over which the schedule is laid.
        optimiser: schedule, peak, and length of the linear warm-up, which is multiplied with the schedule.
    """
    warm = min(1.0, (step + 1) / (optimiser.warmup_steps + 1))
    if optimiser.schedule == "cosine":
        return optimiser.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))
    if optimiser.schedule == "halfway" and step >= total // 2:
        return optimiser.learning_rate * warm / 5
    return optimiser.learning_rate * warm


def implausible_options(config: Config, rows: int, steps: int) -> list[str]:
    """Warnings about options that do not suit `rows` training objects or `steps` in all, one line each."""
    run, found = config.run, []
    if run.global_batch > rows:
        holds = f"the training part holds {rows} objects: an epoch is one step"
        found.append(f"run.global_batch {run.global_batch}: {holds}")
    warmups = {"optimiser.warmup_steps": config.optimiser.warmup_steps}
    if config.adversarial.fraction:
        warmups["adversarial.eps_warmup_steps"] = config.adversarial.eps_warmup_steps
        warmups["adversarial.k_warmup_steps"] = config.adversarial.k_warmup_steps
    for name, length in warmups.items():
        if length > steps:
            ends = f"all {run.epochs} epochs are {steps} steps: the run ends within this warm-up"
            found.append(f"{name} {length}: {ends}")
    return found
