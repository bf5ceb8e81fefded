"""How long a rehearsal of many ranks takes on one machine: `hpcphotoz train ... --rehearse N`.

python -m benchmarks.launch.rehearsal [--quick] [--ranks 1024] [--rounds 5] [--json PATH]

`seconds`: the whole command, the start of Python included, for the small recipe, the Inception, and the
Inception with attackers on ranks of their own. Every rank has two objects in a step, one of them attacked.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Benchmark, on_host_clock, parser, rounds, spread
from benchmarks.training import train_runs

OBJECTS = 4096
TIMEOUT_S = 600.0
RUNS = {
    "adversarial": ("adversarial",),
    "inception-adversarial": ("inception-adversarial",),
    "inception-adversarial, overlap ranks": ("inception-adversarial", "--overlap.mode", "ranks"),
}
ENDED = {0, 1}  # without and with problems: this dataset has too few blocks for so many ranks


def main() -> None:
    """Measure and print."""
    words = parser(__doc__)
    words.add_argument("--ranks", type=int, default=1024, help="number of ranks")
    words.add_argument("--rounds", type=int, default=5, help="rounds of each; 1 with --quick")
    options = words.parse_args()
    benchmark = Benchmark("rehearsal", options.json, options.quick)
    benchmark.add(ranks=options.ranks, objects=OBJECTS)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-rehearsal-") as name:
        folder = Path(name)
        train_runs.write_dataset(folder / "data", OBJECTS)
        rivals = {run: on_host_clock(rehearsal(folder, RUNS[run], options.ranks)) for run in RUNS}
        times = rounds(rivals, 1 if options.quick else options.rounds, benchmark)
    for run, seconds in times.items():
        print(f"{run:38s} {spread(seconds)['median']:6.2f} s", flush=True)
    benchmark.add(seconds={run: spread(seconds) for run, seconds in times.items()})
    benchmark.end()


def rehearsal(folder: Path, recipe: tuple[str, ...], ranks: int) -> Callable[[], None]:
    """A rehearsal as a command; it raises RuntimeError if that fails, or does not say what it rehearsed."""
    words = [sys.executable, "-m", "hpcphotoz", "train", *recipe, "--data", str(folder / "data")]
    words += ["--out", str(folder / "run"), "--device", "cpu", "--run.global_batch", str(2 * ranks)]
    words += ["--rehearse", str(ranks)]

    def run() -> None:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode not in ENDED or f"rehearsal of {ranks:,} ranks" not in done.stdout + done.stderr:
            raise RuntimeError(f"status {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}")

    return run


if __name__ == "__main__":
    main()
