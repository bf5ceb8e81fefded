"""Time to a robust network: trains an entry of the record table, and judges it.

python -m benchmarks.record [--task cpu|gpu] [--entry NAME ...] [--seeds 0 1 2] [--judge test|validation]
    [--resume] [--json PATH]
python -m benchmarks.record --page

The tasks, their targets and the rules are in docs/records.md, which --page writes from
benchmarks/results/record.json and record-gpu.json. Exit status 1: an entry fails, or does not pass.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.record import entry as entries
from benchmarks.record import table
from benchmarks.record.entry import Entry
from benchmarks.record.judge import judge
from benchmarks.record.task import CORES, NO_TARGET, QUICK_TASKS, SEEDS, TASKS, Task
from benchmarks.record.training import train, train_once
from benchmarks.streaming.stream_readers import ROOT
from hpcphotoz.errors import BadInput


class Trained(NamedTuple):
    """A network, the seed that it was trained with, and the seconds that it took."""

    seed: int
    seconds: float
    network: Path


def main() -> None:
    """Read the options, train the entries one after the other, judge them, and say which pass."""
    options = _options()
    try:
        if options.page:
            table.PAGE.write_text(table.page(table.read(), table.read(table.GPU_RESULTS)))
            return
        prepare(options)
        chosen = [
            _entry(name, options.task) for name in options.entry or [table.present_record(options.task)]
        ]
        trained = [(entry, train_all(entry, options)) for entry in chosen]  # all that is timed, first
        failed = [entry.name for entry, runs in trained if not (runs and verdict(entry, runs, options))]
    except BadInput as error:
        sys.exit(f"benchmarks.record: {error}")
    if failed:
        print(f"not passed: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


def train_all(entry: Entry, options: argparse.Namespace) -> list[Trained]:
    """Train an entry with every seed; an empty list if that fails, which is said."""
    task = _task(options)
    data, trained = task.dataset("train", options.folder), []
    for seed in _seeds(options):
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
    task, reports = _task(options), options.folder / "reports" / entry.name
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
        table.write([row], options.json, "quick" if options.quick else options.judge, TASKS[options.task])
    if options.quick or not task.has_target:
        return True  # there is no verdict
    return all(not one["shortcomings"] for one in row["seeds"])


def _task(options: argparse.Namespace) -> Task:
    return (QUICK_TASKS if options.quick else TASKS)[options.task]


def _entry(name: str, task: str) -> Entry:
    found = entries.read(name)
    if found.task != task:
        raise BadInput(f"entry '{name}' is of the task {found.task}: want --task {found.task}")
    return found


def _seeds(options: argparse.Namespace) -> Sequence[int]:
    return options.seeds or (SEEDS[:1] if options.quick else SEEDS)


def _say_failed(entry: Entry, error: RuntimeError) -> None:
    print(f"{entry.name} fails: {error}", file=sys.stderr, flush=True)


def prepare(options: argparse.Namespace) -> None:
    """Bind this process to the cores of its task, or look for its GPU.

    Raises:
        BadInput: they are not there, or the task has no target by which to judge on the test set.
    """
    task = _task(options)
    if task.device == "cpu":
        use_cores(CORES)
    elif not torch.cuda.is_available():
        raise BadInput(f"task {options.task}: no CUDA device here")
    if not task.has_target and options.judge == "test" and not options.quick:
        raise BadInput(NO_TARGET)


def use_cores(cores: int) -> None:
    """Bind this process, and all that it starts, to some cores; BadInput if there are fewer."""
    if not hasattr(os, "sched_setaffinity"):
        return  # a Mac cannot bind processes
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < cores:
        raise BadInput(f"{len(mine)} core: the task is for {cores}")
    os.sched_setaffinity(0, mine[:cores])


def _options() -> argparse.Namespace:
    words = argparse.ArgumentParser(
        prog="python -m benchmarks.record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(entries.names())
    words.add_argument(
        "--task", choices=list(TASKS), default="cpu", help="two cores, or one GPU (default cpu)"
    )
    words.add_argument("--entry", nargs="+", metavar="NAME", help=f"default: the present record; of {known}")
    words.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2; a row wants all three")
    words.add_argument(
        "--judge",
        choices=("test", "validation"),
        default="test",
        help="galaxies that judge; settings are chosen on validation, without confirmations (default test)",
    )
    words.add_argument(
        "--resume",
        action="store_true",
        help="train no network again that an earlier --resume of this commit has trained in --folder",
    )
    words.add_argument("--quick", action="store_true", help="tiny data, one seed, no verdict: does it work?")
    words.add_argument("--json", type=Path, metavar="PATH", help="put the rows into this file")
    words.add_argument("--page", action="store_true", help="write docs/records.md, and end")
    words.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build/record",
        help="for galaxies, which are simulated once, networks and reports (default build/record)",
    )
    return words.parse_args()


if __name__ == "__main__":
    main()
