"""How far a run is, and how fast: from the end of metrics.jsonl, its options and its record."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from hpcphotoz.launch.follow.failures import read_tail

_MOST = 10**15  # greater numbers are of a damaged file
_LONGEST_S = 1e10


@dataclass(frozen=True)
class Figures:
    """Latest figures of a run; None: not known."""

    step: int | None = None  # of the last line of metrics
    total: int | None = None  # steps at the end
    images_per_s: float | None = None  # over all ranks
    data_wait: float | None = None  # fraction of the time that rank 0 waited for data
    eta_s: float | None = None  # to the last step at this rate, without validations and saves
    resumes: bool = False  # the start that runs now has yet to take its first step

    def since(self, step: int) -> "Figures":
        """These figures, without rates that are of a start before: of one that began after `step`."""
        if self.step is not None and self.step > step:
            return self
        return Figures(self.step, self.total)

    def text(self, step: int | None) -> str:
        """As in "at step 17 of 976 (1,234 images/s, data wait 0.4 %, ETA 0:04:10)"; "" without a step."""
        if step is None:
            return ""
        parts = [] if self.images_per_s is None else [f"{self.images_per_s:,.0f} images/s"]
        parts += [] if self.data_wait is None else [f"data wait {100 * self.data_wait:.1f} %"]
        parts += [] if self.eta_s is None else [f"ETA {timedelta(seconds=round(self.eta_s))}"]
        of = f" of {self.total}" if self.total else ""
        at = "and resumes from step" if self.resumes else "at step"
        return f"{at} {step}{of}" + (f" ({', '.join(parts)})" if parts else "")


def read_figures(run: Path, starts: list[dict[str, Any]]) -> Figures:
    """The figures of a run folder.

    Args:
        run: run folder.
        starts: its recorded starts.
    """
    line, options = _last_training_line(run), _options(run)
    total = starts[-1].get("last_step") if starts else None
    total = total if _is_count(total) else options.get("max_steps")
    total = total if _is_count(total) else None
    step, rate = line.get("step"), _number(line.get("images_per_s"))
    batch, eta = options.get("global_batch"), None
    if _is_count(step) and total and rate and rate > 0 and _is_count(batch):
        eta = min(max(0, total - step) * batch / rate, _LONGEST_S)
    step = step if isinstance(step, int) else None
    return Figures(step, total, rate, _number(line.get("data_wait")), eta)


def _last_training_line(run: Path) -> Mapping[str, Any]:
    for text in reversed(read_tail(run / "metrics.jsonl").splitlines()):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # being written, or damaged
            continue
        if isinstance(line, dict) and "part" not in line:
            return line
    return {}


def _options(run: Path) -> Mapping[str, Any]:
    """The section `run` of the run's options; empty: they cannot be read."""
    try:
        with (run / "config.toml").open("rb") as file:
            options = tomllib.load(file).get("run", {})
    except (OSError, ValueError):
        return {}
    return options if isinstance(options, dict) else {}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 < value < _MOST


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < _MOST else None
