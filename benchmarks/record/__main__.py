"""Time to a robust network: trains an entry of the record table, and judges it.

python -m benchmarks.record [--entry NAME ...] [--seeds 0 1 2] [--judge test|validation] [--json PATH]
python -m benchmarks.record --page

The task, the target and the rules are in docs/records.md, which --page writes from
benchmarks/results/record.json. Exit status 1: an entry fails, or does not pass.
"""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.record import entry as entries
from benchmarks.record import table
from benchmarks.record.entry import Entry
from benchmarks.record.judge import judge
from benchmarks.record.task import CORES, FULL, QUICK, SEEDS
from benchmarks.record.training import train
from benchmarks.streaming.stream_readers import ROOT
from hpcphotoz.errors import BadInput


def main() -> None:
    """Read the options, run the entries one after the other, and say which pass."""
    options = _options()
    try:
        if options.page:
            table.PAGE.write_text(table.page(table.read()))
            return
        use_cores(CORES)
        chosen = [entries.read(name) for name in options.entry or [table.present_record()]]
        failed = [entry.name for entry in chosen if not run(entry, options)]
    except BadInput as error:
        sys.exit(f"benchmarks.record: {error}")
    if failed:
        print(f"not passed: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


def run(entry: Entry, options: argparse.Namespace) -> bool:
    """Train an entry with every seed, judge the networks, print and write the row; whether it passes."""
    task, which = (QUICK if options.quick else FULL), options.judge
    seeds = options.seeds or (SEEDS[:1] if options.quick else SEEDS)
    data, runs = task.dataset("train", options.folder), options.folder / "runs"
    judges = task.dataset(which, options.folder)
    seconds, networks = [], {}
    try:
        for seed in seeds:
            print(f"{entry.name}, seed {seed}: training", flush=True)
            taken, network = train(entry, seed, task, data, runs)
            print(f"{entry.name}, seed {seed}: {taken:.1f} s", flush=True)
            seconds.append(taken)
            networks[f"{entry.name}-seed-{seed}"] = network
        reports = options.folder / "reports" / entry.name
        found = judge(task, networks, judges, reports, confirm=which == "test")
    except RuntimeError as error:
        print(f"{entry.name} fails: {error}", file=sys.stderr, flush=True)
        return False
    row = table.row(entry, seeds, seconds, list(found.values()))
    for one in row["seeds"]:
        clean, robust = one["clean"]["sigma_mad"], one["robust"]["sigma_mad"]
        print(f"{entry.name}, seed {one['seed']}: sigma_MAD {clean:.4f}, under APGD {robust:.4f}")
        for name, sigma in one.get("confirmations", {}).items():
            print(f"  {name}: {sigma:.4f}")
        for reason in [] if options.quick else one["shortcomings"]:
            print(f"  {reason}")
    print(f"{entry.name}: median {row['seconds']:.1f} s over seeds {', '.join(map(str, seeds))}")
    if options.json:
        table.write([row], options.json, "quick" if options.quick else which)
    if options.quick:
        return True  # sizes that mean nothing have no verdict
    return all(not one["shortcomings"] for one in row["seeds"])


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
    words.add_argument("--entry", nargs="+", metavar="NAME", help=f"default: the present record; of {known}")
    words.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2; a row wants all three")
    words.add_argument(
        "--judge",
        choices=("test", "validation"),
        default="test",
        help="galaxies that judge; settings are chosen on validation, without confirmations (default test)",
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
