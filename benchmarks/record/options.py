"""Options of the record program, and what is checked of them before anything is simulated or trained."""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.record import entry as entries
from benchmarks.record import table
from benchmarks.record.entry import Entry
from benchmarks.record.task import CORES, NO_TARGET, QUICK_TASKS, SEEDS, TASKS, Task
from benchmarks.record.training import check_peer
from benchmarks.streaming.stream_readers import ROOT
from hpcphotoz.errors import BadInput

LARGEST_SEED = 2**31 - 1  # as option run.seed


def parse(description: str | None) -> argparse.Namespace:
    """Parse the command line; `description` is the docstring of the program."""
    words = argparse.ArgumentParser(
        prog="python -m benchmarks.record",
        description=description,
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
        help="train no network again that an earlier run with --resume trained in --folder in the same way, "
        "on this machine, at this commit; where files differ from the commit, all are trained",
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


def prepare(options: argparse.Namespace) -> list[Entry]:
    """Check all options, and bind this process to the cores of its task.

    Returns:
        The entries to train.

    Raises:
        BadInput: an entry, a seed, --folder or the file of --json cannot be used; the cores, the GPU or the
            packages of the peer are not there; the task has no target by which to judge on the test set.
    """
    task = task_of(options)
    _refuse_twice("--seeds", options.seeds or [])
    _refuse_twice("--entry", options.entry or [])
    for seed in options.seeds or []:
        if not 0 <= seed <= LARGEST_SEED:
            raise BadInput(f"--seeds {seed}: want whole numbers from 0 to {LARGEST_SEED}")
    chosen = [_entry(name, options.task) for name in options.entry or [table.present_record(options.task)]]
    if options.json:
        table.check(options.json, judge_of(options), TASKS[options.task])
    for name in ("train", options.judge):
        task.check_dataset(name, options.folder)
    if task.device == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"task {options.task}: no CUDA device here")
    if not task.has_target and options.judge == "test" and not options.quick:
        raise BadInput(NO_TARGET)
    for one in chosen:
        if one.program == "peer":
            check_peer(one)
    if task.device == "cpu":
        use_cores(CORES)
    return chosen


def task_of(options: argparse.Namespace) -> Task:
    """The task, tiny with --quick."""
    return (QUICK_TASKS if options.quick else TASKS)[options.task]


def judge_of(options: argparse.Namespace) -> str:
    """What judges the rows, for their file: "test", "validation" or "quick"."""
    return "quick" if options.quick else str(options.judge)


def seeds_of(options: argparse.Namespace) -> Sequence[int]:
    """The seeds to train with."""
    return options.seeds or (SEEDS[:1] if options.quick else SEEDS)


def use_cores(cores: int) -> None:
    """Bind this process, and all that it starts, to some cores; BadInput if there are fewer."""
    if not hasattr(os, "sched_setaffinity"):
        return  # a Mac cannot bind processes
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < cores:
        raise BadInput(f"{len(mine)} core: the task is for {cores}")
    os.sched_setaffinity(0, mine[:cores])


def _entry(name: str, task: str) -> Entry:
    found = entries.read(name)
    if found.task != task:
        raise BadInput(f"entry '{name}' is of the task {found.task}: want --task {found.task}")
    return found


def _refuse_twice(option: str, values: Sequence[object]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise BadInput(f"{option}: {value} is given {count} times: give it once")
