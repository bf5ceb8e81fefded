"""Reads the lines of a run's metrics.jsonl, sorted by what they are about."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

Line = Mapping[str, Any]
Points = list[tuple[int, float]]  # of a curve: optimiser step, and value


@dataclass(frozen=True)
class MetricsLines:
    """Lines of metrics.jsonl, in their order; docs/reference/metrics.md describes the keys."""

    training: list[Line] = field(default_factory=list)
    validations: list[Line] = field(default_factory=list)
    saves: list[Line] = field(default_factory=list)
    events: list[Line] = field(default_factory=list)
    damaged: int = 0  # lines that cannot be read

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read a run folder; none of it is an error: the file may be missing, and a line is being written."""
        try:
            text = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return cls()
        found, damaged = cls(), 0
        for one in text.split("\n")[:-1]:
            try:
                line = json.loads(one)
                kind = {"validation": found.validations, "checkpoint": found.saves, "event": found.events}
                lines = kind[line["part"]] if "part" in line else found.training
                lines.append({**line, "step": int(line["step"]), "epoch": int(line["epoch"])})
            except (
                ValueError,
                KeyError,
                TypeError,
            ):  # not JSON, no step or epoch, or a part of a later version
                damaged += 1
        return cls(found.training, found.validations, found.saves, found.events, damaged)

    def curve(self, key: str) -> Points:
        """A figure of the training lines against the step; steps at which it is not finite are left out."""
        return points(self.training, key)

    def validation_curve(self, key: str) -> Points:
        """A figure of the validation lines against the step."""
        return points(self.validations, key)


def points(lines: Sequence[Line], key: str) -> Points:
    """(step, value) of the lines that have a finite value."""
    return [(line["step"], float(line[key])) for line in lines if is_number(line.get(key))]


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def of_run(curve: Points) -> dict[str, float] | None:
    """Median, first and last value of a curve; None: it is empty."""
    values = [value for _, value in curve]
    return {"median": median(values), "first": values[0], "last": values[-1]} if values else None
