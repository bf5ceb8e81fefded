"""Time to a robust network: trains an entry of the record table, and judges it.

python -m benchmarks.record [--task cpu|gpu] [--entry NAME ...] [--seeds 0 1 2] [--judge test|validation]
    [--resume] [--json PATH]
python -m benchmarks.record --page

The tasks, their targets and the rules are in docs/records.md, which --page writes from
benchmarks/results/record.json and record-gpu.json. Exit status 1: an entry fails, or does not pass; 2: input
that cannot be used, which is said before anything is simulated or trained.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.record import options as given
from benchmarks.record import table
from benchmarks.record.entry import Entry
from benchmarks.record.judge import judge
from benchmarks.record.options import judge_of, seeds_of, task_of
from benchmarks.record.task import TASKS
from benchmarks.record.training import say_what_is_reused, train, train_once
from hpcphotoz.errors import BadInput


class Trained(NamedTuple):
    """A network, the seed that it was trained with, and the seconds that it took."""

    seed: int
    seconds: float
    network: Path


def main() -> None:
    """Read the options, train the entries one after the other, judge them, and say which pass."""
    options = given.parse(__doc__)
    try:
        failed = _run(options)
    except BadInput as error:
        print(f"benchmarks.record: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    if failed:
        print(f"not passed: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


def _run(options: argparse.Namespace) -> list[str]:
    """Write the page, or train and judge; names of the entries that fail or do not pass."""
    if options.page:
        table.PAGE.write_text(table.page(table.read(), table.read(table.GPU_RESULTS)))
        return []
    chosen = given.prepare(options)
    if options.resume:
        say_what_is_reused()
    try:
        for name in ("train", options.judge):
            task_of(options).dataset(name, options.folder)
    except RuntimeError as error:
        print(f"benchmarks.record: {error}", file=sys.stderr, flush=True)
        return [entry.name for entry in chosen]
    trained = [(entry, train_all(entry, options)) for entry in chosen]  # all that is timed, first
    return [entry.name for entry, runs in trained if not (runs and verdict(entry, runs, options))]


def train_all(entry: Entry, options: argparse.Namespace) -> list[Trained]:
    """Train an entry with every seed; an empty list if that fails, which is said."""
    task = task_of(options)
    data, trained = task.dataset("train", options.folder), []
    for seed in seeds_of(options):
        print(f"{entry.name}, seed {seed}: training", flush=True)
        try:
            how = train_once if options.resume else train
            seconds, network = how(entry, seed, task, data, options.folder / "runs")
        except RuntimeError as error:
            _say_failed(entry, error)
            return []
        print(f"{entry.name}, seed {seed}: {seconds:.1f} s", flush=True)
        trained.append(Trained(seed, seconds, network))
    return trained


def verdict(entry: Entry, trained: Sequence[Trained], options: argparse.Namespace) -> bool:
    """Judge the networks of an entry, print and write its row; whether it passes."""
    task, reports = task_of(options), options.folder / "reports" / entry.name
    networks = {f"{entry.name}-seed-{one.seed}": one.network for one in trained}
    judges = task.dataset(options.judge, options.folder)
    try:
        found = judge(task, networks, judges, reports, confirm=options.judge == "test")
    except RuntimeError as error:
        _say_failed(entry, error)
        return False
    seeds = [one.seed for one in trained]
    row = table.row(entry, seeds, [one.seconds for one in trained], list(found.values()))
    for one in row["seeds"]:
        clean, robust = one["clean"]["sigma_mad"], one["robust"]["sigma_mad"]
        print(f"{entry.name}, seed {one['seed']}: sigma_MAD {clean:.4f}, under APGD {robust:.4f}")
        for name, sigma in one.get("confirmations", {}).items():
            print(f"  {name}: {sigma:.4f}")
        for reason in [] if options.quick else one["shortcomings"]:
            print(f"  {reason}")
    print(f"{entry.name}: median {row['seconds']:.1f} s over seeds {', '.join(map(str, seeds))}", flush=True)
    if options.json:
        table.write([row], options.json, judge_of(options), TASKS[options.task])
    if options.quick or not task.has_target:
        return True  # there is no verdict
    return all(not one["shortcomings"] for one in row["seeds"])


def _say_failed(entry: Entry, error: RuntimeError) -> None:
    print(f"{entry.name} fails: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
