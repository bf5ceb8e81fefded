"""What a launch costs, and what a preemption and a kill cost: seconds and steps, on a Slurm of this machine.

python -m tests.helpers.launch.cluster -- \\
    python -m benchmarks.bench_launch [--quick] [--rounds 5] [--json PATH]

A small run of four ranks on two nodes is started in turns by:

    launch   `hpcphotoz launch slurm`: checks, a snapshot of the code, sbatch, srun, submitit
    sbatch   a batch script of four lines with srun
    srun     srun alone

`first_step_s`: from the start of the command to the first step in metrics.jsonl. `overhead_s`: launch less
srun, round by round; `overhead_over_sbatch_s`: launch less sbatch.

`preemption`: from the submission of a job of a higher partition that takes all nodes and ends at once, to the
first step after the resume; Slurm's delays before the notice and before the restart are in it. `kill`: the
same from the SIGKILL of one rank. `steps_lost`: steps that were taken and are taken again.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import Benchmark, parser, rounds, spread
from benchmarks.launch import jobs
from benchmarks.training import train_runs

CHECKPOINT_STEPS = 50
DISTURBED_AFTER = 60  # steps
STARTERS = {"launch": jobs.launch, "sbatch": jobs.sbatch, "srun": jobs.srun}
DISTURBANCES = {"preemption": jobs.preempt, "kill": jobs.kill_rank}


def main() -> None:
    """Measure and print."""
    words = parser(__doc__)
    words.add_argument("--rounds", type=int, default=5, help="rounds of each; 1 with --quick")
    options = words.parse_args()
    if shutil.which("sbatch") is None:
        sys.exit("no Slurm here: python -m tests.helpers.launch.cluster -- python -m benchmarks.bench_launch")
    repeat = 1 if options.quick else options.rounds
    benchmark = Benchmark("launch", options.json, options.quick)
    benchmark.add(nodes=jobs.NODES, ranks=jobs.NODES * jobs.RANKS_PER_NODE, checkpoint_steps=CHECKPOINT_STEPS)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-launch-") as name:
        folder = Path(name)
        train_runs.write_dataset(folder / "data", 512)
        jobs.write_config(folder / "config.toml", CHECKPOINT_STEPS)
        starting(folder, repeat, benchmark, options.quick)
        disturbing(folder, repeat, benchmark)
    benchmark.end()


def starting(folder: Path, repeat: int, benchmark: Benchmark, quick: bool) -> None:
    """Add the seconds to the first step, by way of starting, and their differences."""
    numbers = iter(range(10**6))

    def rival(start: Callable[[Sequence[str]], Callable[[], None]]) -> Callable[[], float]:
        def measure() -> float:
            run = folder / f"start-{next(numbers)}"
            words = jobs.train_words(folder / "config.toml", folder / "data", run)
            began = time.monotonic()
            end = start(words)
            try:
                jobs.until("the first step", lambda: jobs.last_step(run))
                return time.monotonic() - began
            finally:
                end()

        return measure

    rivals = {name: rival(start) for name, start in STARTERS.items()}
    if quick:  # no round of warm-up
        once = {name: benchmark.attempt(name, rivals[name]) for name in ("launch", "srun")}
        times = {name: [seconds] for name, seconds in once.items() if seconds is not None}
    else:
        times = rounds(rivals, repeat, benchmark)
    for name, seconds in times.items():
        print(f"{name:12s} first step after {spread(seconds)['median']:7.2f} s", flush=True)
    benchmark.add(first_step_s={name: spread(seconds) for name, seconds in times.items()})
    for other, figure in (("srun", "overhead_s"), ("sbatch", "overhead_over_sbatch_s")):
        pairs = list(zip(times.get("launch", []), times.get(other, []), strict=False))
        if pairs:
            found = spread([ours - bare for ours, bare in pairs])
            print(f"launch over {other}: {found['median']:.2f} s", flush=True)
            benchmark.add(**{figure: found})


def disturbing(folder: Path, repeat: int, benchmark: Benchmark) -> None:
    """Add the seconds to the first step after a preemption and after a kill, and the steps lost."""
    for name, disturb in DISTURBANCES.items():
        seconds, lost = [], []
        for number in range(repeat):
            found = benchmark.attempt(name, disturbed, folder, folder / f"{name}-{number}", disturb)
            if found is None:
                break
            seconds.append(found[0])
            lost.append(found[1])
        if seconds:
            took = spread(seconds)
            print(f"{name}: resumed after {took['median']:.1f} s, lost {max(lost)} steps", flush=True)
            benchmark.add(**{name: {"resumed_s": took, "steps_lost": max(lost)}})


def disturbed(folder: Path, run: Path, disturb: Callable[[Path], None]) -> tuple[float, int]:
    """Seconds from a disturbance to the first step after the resume, and the number of steps lost."""
    jobs.launch(jobs.train_words(folder / "config.toml", folder / "data", run))
    try:
        jobs.until("steps", lambda: jobs.last_step(run) > DISTURBED_AFTER)
        began = time.monotonic()
        disturb(run)
        taken = [0]

        def resumes() -> bool:
            if resumed := len(jobs.starts(run)) > 1:
                return resumed
            taken.append(jobs.last_step(run))
            return False

        jobs.until("the resume", resumes)
        begun, at = int(jobs.starts(run)[1]["step"]), time.time()
        metrics = run / "metrics.jsonl"  # until it is cut, the lost steps are still in it
        jobs.until("a step", lambda: metrics.stat().st_mtime > at and jobs.last_step(run) > begun)
        return time.monotonic() - began, max(taken) - begun
    finally:
        jobs.end_all_jobs()


if __name__ == "__main__":
    main()
