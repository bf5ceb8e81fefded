"""The validation figure that tells which epoch is best, and so which checkpoint is kept."""

import math
from collections.abc import Mapping
from typing import Any

from hpcphotoz.config import Config


def score(figures: Mapping[str, Any], config: Config) -> float | None:
    """The figure of a validation by which epochs are compared; smaller is better.

    Args:
        figures: a validation line of metrics.jsonl.
        config: `run.criterion`, and `adversarial.fraction` for a weighted one.

    Returns:
        sigma_MAD on clean images, on attacked ones, or (1 - f) times the first plus f times the second; None:
        the line lacks it, or it is not finite.
    """
    clean, robust = figures.get("sigma_mad"), figures.get("sigma_mad_adversarial")
    f = {"clean": 0.0, "robust": 1.0, "weighted": config.adversarial.fraction}[config.run.criterion]
    parts = [(weight, figure) for weight, figure in ((1 - f, clean), (f, robust)) if weight]
    if any(figure is None for _, figure in parts):
        return None
    found = sum(weight * float(figure) for weight, figure in parts if figure is not None)
    return found if math.isfinite(found) else None
