"""Small training runs for tests of launches, and readers of their records."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.launch.request.plan import LaunchPlan
from tests.helpers import ranks

Install = Callable[[str, str], None]  # name and shell text of a program to put first in PATH
TWO_RANKS = LaunchPlan(tasks_per_node=2, cpus_per_task=1)


def small(max_steps: int, checkpoint_steps: int = 10**6, **model: object) -> Config:
    """A run of 10 ms a step on two ranks, with metrics every step; by default one checkpoint at the end."""
    return configure(
        "test",
        **{"width": 8, "bins": 20, **model, "validation": 0, "read_threads": 1},
        **{"epochs": 2000, "global_batch": 16, "max_steps": max_steps, "log_steps": 1},
        checkpoint_steps=checkpoint_steps,
    )


def starts(run: Path) -> list[dict[str, Any]]:
    """The provenance that each start of a run recorded."""
    found: list[dict[str, Any]] = json.loads((run / "provenance.json").read_text())["starts"]
    return found


def steps_logged(run: Path) -> list[int]:
    """The steps with a loss in metrics.jsonl; empty if there is no such file."""
    return [step for step, _ in ranks.curve(run)]


def stopped_after(run: Path, world_size: int) -> set[str]:
    """The steps after which the ranks stopped, according to their logs."""
    logs = [(run / "logs" / f"rank-{rank}.log").read_text() for rank in range(world_size)]
    return {step for log in logs for step in re.findall(r"stopped after step (\d+)", log) or ["never"]}
