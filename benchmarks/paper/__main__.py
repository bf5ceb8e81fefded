"""The three claims of Campagne 2020 (arXiv:2002.10154) on simulated galaxies.

python -m benchmarks.paper --out DIR [--quick] [--grid] [--resume] [--minutes M] [--processes N]
    [--frames DIR]
python -m benchmarks.paper --page

Simulates galaxies, trains standard and adversarial networks with three seeds, attacks them, and writes what
was found to DIR/paper.json, with the page and its figures in DIR/page. What was done is in DIR/done: with
--resume the same command goes on where it stopped. --page writes docs/paper.md from
benchmarks/results/paper.json. Exit status 1: something failed, or there was no time for it; 2: an option that
cannot be used.
"""

import argparse
import sys

from benchmarks.paper import options as given
from benchmarks.paper import results
from benchmarks.paper.report import page
from benchmarks.paper.steps import Place, all_tasks
from benchmarks.paper.tasks import do_all
from benchmarks.streaming.stream_readers import ROOT
from hpcphotoz.errors import BadInput


def main() -> None:
    """Read the options, and write the page, or measure and write what was found."""
    options = given.parse(__doc__)
    try:
        if options.page:
            page.write(results.read(given.RESULTS), ROOT / "docs/paper.md")
            sys.exit(0)
        given.check(options)
    except BadInput as error:
        print(f"benchmarks.paper: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if _run(options) else 1)


def _run(options: argparse.Namespace) -> bool:
    """Whether all was done."""
    plan = given.plan_of(options)
    place = Place(options.out.absolute(), given.frames_of(options))
    tasks = all_tasks(plan, place)
    outcome = do_all(tasks, place.done, options.processes, options.minutes)
    command = f"python -m benchmarks.paper --out DIR{' --quick' * options.quick}{' --grid' * options.grid}"
    skipped = [] if place.frames else ["galaxies in real sky: no SDSS DR7 frames were there"]
    tree = results.collect(plan, tasks, place.done, outcome, {"command": command, "skipped": skipped})
    results.write(tree, place.out / "paper.json")
    page.write(results.read(place.out / "paper.json"), place.out / "page/paper.md")
    print(f"{options.out / 'paper.json'}, {options.out / 'page/paper.md'}")
    if outcome.left_out:
        print(f"no time for {len(outcome.left_out)} of {len(tasks)}: {', '.join(outcome.left_out)}")
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return not (outcome.failed or outcome.left_out)


if __name__ == "__main__":
    main()
