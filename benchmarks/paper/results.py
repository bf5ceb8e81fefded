"""The results of a run of the program as one JSON tree, and means over seeds with their errors."""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.plan import Plan, Training
from benchmarks.paper.tasks import Outcome, Task
from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput

Tree = dict[str, Any]


@dataclass(frozen=True)
class Mean:
    """Mean over seeds, and its standard error: the scatter of the seeds over the root of their number."""

    value: float
    error: float | None  # None: one seed
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """The mean of at least one value."""
        n = len(values)
        error = statistics.stdev(values) / n**0.5 if n > 1 else None
        return cls(statistics.fmean(values), error, n)

    def text(self, factor: float = 1, places: int = 4, sign: str = "") -> str:
        """The mean times a factor, with its error: with more places where the error would be 0."""
        while self.error and places < 7 and round(factor * self.error, places) == 0:
            places += 1
        mean = f"{factor * self.value:{sign}.{places}f}"
        return mean if self.error is None else f"{mean} ± {factor * self.error:.{places}f}"


def collect(plan: Plan, tasks: Iterable[Task], folder: Path, outcome: Outcome, about: Tree) -> Tree:
    """All that has been found, as `paper.json` holds it.

    Args:
        plan: sizes and settings.
        tasks: of the plan.
        folder: of the tasks' files.
        outcome: which failed, and for which there was no time.
        about: `command`, how the program was called, and `skipped`, parts of the plan with the reasons.
    """
    records = {task.name: task.record(folder) for task in tasks if task.found(folder) is not None}
    devices = sorted({one["device"] for one in records.values()})
    versions = [one["versions"] for one in records.values()]
    return {
        "benchmark": "paper",
        "date": time.strftime("%Y-%m-%d"),
        "commits": sorted({str(one["commit"]) for one in records.values()}),
        "devices": devices,
        "versions": [one for place, one in enumerate(versions) if one not in versions[:place]],
        **about,
        "plan": asdict(plan),
        "trainings": {one.name: _about(one) for one in plan.trainings},
        "failed": outcome.failed,
        "left_out": outcome.left_out,
        "found": {name: one["found"] for name, one in records.items()},
    }


def _about(training: Training) -> Tree:
    adversaries = asdict(training.adversaries) if training.adversaries else None
    return {"group": training.group, "data": training.data, "adversaries": adversaries}


def write(tree: Tree, path: Path) -> None:
    """Write a tree of `collect`."""
    write_text(path, json.dumps(tree, indent=1) + "\n")


def read(path: Path) -> "Results":
    """Read a file of `write`; raises BadInput for another file, or none."""
    if not path.exists():
        raise BadInput(f"{path}: not there: python -m benchmarks.paper --out DIR makes DIR/paper.json")
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}") from None
    if not isinstance(tree, dict) or tree.get("benchmark") != "paper":
        raise BadInput(f"{path}: not a file of benchmarks.paper")
    return Results(tree)


@dataclass(frozen=True)
class Results:
    """A tree of `collect`, and what is read from it. None stands for what has not been measured."""

    tree: Tree

    @property
    def plan(self) -> Mapping[str, Any]:
        """Sizes and settings."""
        plan: Mapping[str, Any] = self.tree["plan"]
        return plan

    @property
    def seeds(self) -> list[int]:
        """Seeds of the trainings."""
        return list(self.plan["seeds"])

    def networks(self, *groups: str) -> list[str]:
        """Names of the networks of some groups that have been trained with any seed, in order."""
        found = self.tree["found"]
        names = [name for name, one in self.tree["trainings"].items() if one["group"] in groups]
        return [name for name in names if any(f"train-{name}-seed-{s}" in found for s in self.seeds)]

    def found(self, task: str) -> Tree | None:
        """What a task found."""
        tree: Tree | None = self.tree["found"].get(task)
        return tree

    def over_seeds(self, network: str, task: str, of: Callable[[Tree, str], float | None]) -> Mean | None:
        """Mean of a number over the seeds of a network for which a task has been done.

        Args:
            network: its name.
            task: of its runs: "pdfs", "curves", "strong" or "train".
            of: gives the number, from what the task found and the name of the run; None: it has none.
        """
        runs = [f"{network}-seed-{seed}" for seed in self.seeds]
        each = [of(found, run) for run in runs if (found := self.found(f"{task}-{run}")) is not None]
        values = [value for value in each if value is not None]
        return Mean.of(values) if values else None

    def clean(self, network: str, key: str = "sigma_mad") -> Mean | None:
        """A metric on all test galaxies, unattacked."""
        return self.over_seeds(network, "pdfs", lambda found, run: float(found[key]))

    def attacked(
        self, network: str, method: str, eps: float, key: str = "sigma_mad", task: str = "curves"
    ) -> Mean | None:
        """A metric under an attack, of epsilon 0 on the same galaxies; None: that was not measured."""

        def value(found: Tree, run: str) -> float | None:
            each = found["curves"][run].get(method, ())
            return next((float(one[key]) for one in each if one["eps"] == eps), None)

        return self.over_seeds(network, task, value)

    def transfer(self, source: str, target: str, key: str = "sigma_mad") -> Mean | None:
        """A metric of a network on images made against another, or against other seeds of itself.

        The mean and its error are over the seeds of the network that predicts; for each, the images of all
        seeds of the other network are averaged.
        """
        matrix = (self.found("transfer") or {}).get("transfer", {})
        values = []
        for seed in self.seeds:
            run = f"{target}-seed-{seed}"
            made = [matrix.get(f"{source}-seed-{other}", {}).get(run) for other in self.seeds]
            if known := [float(one[key]) for one in made if one is not None]:
                values.append(statistics.fmean(known))
        return Mean.of(values) if values else None
