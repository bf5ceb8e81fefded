"""The record tables: rows of record.json and record-gpu.json in benchmarks/results, and docs/records.md."""

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, versions
from benchmarks.record.entry import Entry
from benchmarks.record.judge import Figures, shortcomings
from benchmarks.record.task import CLEAN, CORES, EPS, FULL, ROBUST, SEEDS, TASKS, Task
from benchmarks.streaming.stream_readers import ROOT
from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput

_TEMPLATE = Path(__file__).with_name("page.md")
RESULTS, PAGE = ROOT / "benchmarks/results/record.json", ROOT / "docs/records.md"
GPU_RESULTS = RESULTS.with_name("record-gpu.json")
FIRST = {"cpu": "users-loop", "gpu": "users-loop-gpu"}  # the rows of the ratios
DEFAULT = {"cpu": "adversarial-2026", "gpu": "inception-adversarial"}  # entries where there is no record yet
Row = dict[str, Any]


def row(entry: Entry, seeds: Sequence[int], seconds: Sequence[float], figures: Sequence[Figures]) -> Row:
    """A row of the table: an entry's seconds, metrics and verdict.

    Args:
        entry: what was trained.
        seeds: its seeds.
        seconds: of each, from the start of its process to its end.
        figures: of each, from `judge.judge`.
    """
    facts, task = machine(), TASKS[entry.task]
    lacking = [shortcomings(one, task) for one in figures]
    on_gpu = {"versions": versions()} if task.device == "cuda" else {}
    return {
        "entry": entry.name,
        "changed": entry.changed,
        "seconds": statistics.median(seconds),
        "passes": set(SEEDS) <= set(seeds) and not any(lacking),
        "date": time.strftime("%Y-%m-%d"),
        "commit": entry.commit,
        "device": facts["device"] if on_gpu else f"{CORES} cores of {facts['processor']}",
        **on_gpu,
        "cpu_capability_of_torch": facts["cpu_capability_of_torch"],
        "cpu_flags": facts["cpu_flags"],
        "seeds": [
            {"seed": seed, "seconds": taken, **one, "shortcomings": said}
            for seed, taken, one, said in zip(seeds, seconds, figures, lacking, strict=True)
        ],
    }


def read(path: Path = RESULTS) -> list[Row]:
    """Rows of a file of `write`; none if there is no file. BadInput: another file."""
    rows: list[Row] = _tree(path)["rows"] if path.exists() else []
    return rows


def check(path: Path, judge: str, task: Task = FULL) -> None:
    """Check that `write` can put rows of a judge and task into a file.

    Raises:
        BadInput: no such folder, not a file that can be written, or one of another judge or task.
    """
    if not path.absolute().parent.is_dir():
        raise BadInput(f"--json {path}: no folder {path.parent}: make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise BadInput(f"--json {path}: not a file that can be written: name another")
    if path.exists():
        before = _tree(path)
        if before["judge"] != judge:
            raise BadInput(f"{path}: holds rows judged by {before['judge']}: name another file")
        if before["target"] != _target(task):
            raise BadInput(f"{path}: holds rows of another target: name another file")


def write(rows: Sequence[Row], path: Path, judge: str, task: Task = FULL) -> None:
    """Write rows in the place of earlier ones of the same entries and device.

    Args:
        rows: new ones.
        path: JSON file, which keeps its other rows.
        judge: "test", "validation" or "quick".
        task: of the rows.

    Raises:
        BadInput: as `check`.
    """
    check(path, judge, task)
    new = {(one["entry"], one["device"]) for one in rows}
    kept = [one for one in read(path) if (one["entry"], one["device"]) not in new]
    tree = {"benchmark": "record", "judge": judge, "target": _target(task), "rows": [*kept, *rows]}
    write_text(path, json.dumps(tree, indent=1) + "\n")


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}: name another file") from None
    if not isinstance(tree, dict) or not {"judge", "target", "rows"} <= set(tree):
        raise BadInput(f"{path}: not a file of record rows: name another file")
    return tree


def _target(task: Task) -> dict[str, float | None]:
    return {"clean": task.clean, "robust": task.robust, "eps_sky_sigma": EPS, "steps": task.steps}


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows that pass, quickest first."""
    return sorted((one for one in rows if one["passes"]), key=lambda one: float(one["seconds"]))


def present_record(task: str = "cpu") -> str:
    """The entry that holds the record of a task."""
    passing = ranked(read(RESULTS if task == "cpu" else GPU_RESULTS))
    return str(passing[0]["entry"]) if passing else DEFAULT[task]


def ratio(one: Row, rows: Sequence[Row]) -> float | None:
    """How many times as quick as the user's loop; None if that has not passed on the same device."""
    for first in ranked(rows):
        if first["entry"] in FIRST.values() and first["device"] == one["device"]:
            return float(first["seconds"]) / float(one["seconds"])
    return None


def page(rows: Sequence[Row], gpu_rows: Sequence[Row] = ()) -> str:
    """`docs/records.md`: page.md with the rows of CPUs, and with those of a GPU."""
    tables = {
        "table": _section(rows, "cpu", "No entry has been timed on a quiet machine yet."),
        "gpu_table": _section(gpu_rows, "gpu", "No entry has been timed on a GPU yet."),
    }
    return _TEMPLATE.read_text().format(**_sizes(), **_targets(), **tables)


def _section(rows: Sequence[Row], task: str, none: str) -> str:
    times_as_fast = f"times as fast as `{FIRST[task]}`"
    head = f"| rank | seconds | {times_as_fast} | entry | what changed | date | commit | device |"
    lines = [head, "|---:|---:|---:|---|---|---|---|---|"]
    for rank, one in enumerate(ranked(rows), start=1):
        times = ratio(one, rows)
        cells = [str(rank), f"{one['seconds']:.0f}", "-" if times is None else f"{times:.2f}"]
        cells += [f"`{one['entry']}`", one["changed"], one["date"], _commit(one), one["device"]]
        lines.append(f"| {' | '.join(cells)} |")
    failed = [one for one in rows if not one["passes"]]
    parts = ["\n".join(lines) if ranked(rows) else none]
    if failed:
        names = ", ".join(f"{one['entry']} ({_why(one)})" for one in failed)
        parts.append(f"Timed, and did not pass: {names}.")
    if rows:
        parts.append(
            "\n".join([f"## Metrics of each seed{' on a GPU' * (task == 'gpu')}", "", *_metrics(rows)])
        )
    return "\n\n".join(parts)


def _commit(one: Row) -> str:
    commit = one["commit"] or "-"
    return f"{commit[:7]}, changed" if commit.endswith("-dirty") else commit[:7]


def _targets() -> dict[str, object]:
    gpu = TASKS["gpu"]
    said = "not set yet, so that no entry can pass: `benchmarks/record/task.py` says how it will be"
    if gpu.has_target:
        said = f"at most {gpu.clean} on clean images and {gpu.robust} under APGD"
    return {"clean": CLEAN, "robust": ROBUST, "eps": EPS, "gpu_target": said}


def _sizes() -> dict[str, int]:
    (train, train_seed), (test, test_seed) = FULL.sets["train"], FULL.sets["test"]
    (validation, validation_seed) = FULL.sets["validation"]
    return {
        **{"train": train, "train_seed": train_seed, "test": test, "test_seed": test_seed},
        **{"validation": validation, "validation_seed": validation_seed},
        **{"steps": FULL.steps, "restarts": FULL.restarts},
        **{"queries": FULL.queries, "square_objects": FULL.square_objects, "cores": CORES},
    }


def _why(one: Row) -> str:
    said = [reason for seed in one["seeds"] for reason in seed["shortcomings"]]
    return said[0] if said else f"{len(one['seeds'])} seeds of {len(SEEDS)}"


def _metrics(rows: Sequence[Row]) -> list[str]:
    columns = ["entry", "seed", "seconds", "clean sigma_MAD, eta", "APGD sigma_MAD, eta"]
    columns += ["APGD on DLR margin", "on PMA", "transfer", "Square / APGD on the same galaxies"]
    lines = [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 2) + "|---|"]
    for one in sorted(rows, key=lambda one: float(one["seconds"])):
        for seed in one["seeds"]:
            pair = [f"{m['sigma_mad']:.4f}, {100 * m['eta']:.1f} %" for m in (seed["clean"], seed["robust"])]
            other = {name: f"{value:.4f}" for name, value in seed.get("confirmations", {}).items()}
            last = f"{other.get('square', '-')} / {other.get('apgd_same_objects', '-')}"
            cells = [one["entry"], str(seed["seed"]), f"{seed['seconds']:.0f}", *pair]
            cells += [other.get(name, "-") for name in ("margin", "probability_margin", "transfer")]
            lines.append(f"| {' | '.join([*cells, last])} |")
    return lines
