"""The numbers of a line of metrics.jsonl, by the names that dashboards show."""

from collections.abc import Mapping
from typing import Any


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line as `PART/KEY`, without its step; texts, lists and null are left out."""
    part = line.get("part", "training")
    numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
    return {f"{part}/{key}": float(value) for key, value in numbers.items()}
