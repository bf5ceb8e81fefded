"""Adversarial training: our command against the loop a user would write, and the parts of a step.

python -m benchmarks.bench_step [--quick] [--networks inception ...] [--parts peer ...] [--json PATH]

Run `make peers` first, or have torchattacks in this environment.

`peer`: images a second of `hpcphotoz train` over those of `benchmarks/peers/train.py` (the plain network in
DistributedDataParallel, a DataLoader over h5py, torchattacks.PGD), both started by torchrun on as many ranks:
same dataset, initial weights, global batch, PGD-3 on half of every batch, epsilon 0.1 sky sigma, AdamW, hard
labels. Augmentation is off in ours (`data.augment`), the peer has none. On a CPU: two ranks, one thread
each; on a GPU: a rank each, larger batches.

    peer                the loop with torch's defaults: float32, on a GPU with TF32
    peer_fp32           the same without TF32
    peer_tuned          the same with channels_last, the memory kept, and autocast in the precision that the
                        device chooses (`precision`), all set by hand
    peer_tuned_fp32     the same in float32
    ours                `hpcphotoz train` with its defaults: precision, compiler and graphs are auto
                        in a run of many epochs (`speed`)
    ours_fp32           the same in float32

`ratio_peer_loop` is ours over peer, `ratio_peer_loop_fp32` ours_fp32 over peer_fp32, `ratio_peer_tuned` ours
over peer_tuned: what is left of the ratio then is not settings. Rivals take turns, ratios are medians over
the rounds; where the last losses of two runs differ by more than a tenth, no ratio of them is given, and the
comparison counts as failed. The first steps of every run, its start and its last checkpoint are not timed.

`passes`: attack, forward and backward pass of training and update, each alone, and its fraction of the limit
that the memory's bandwidth sets (`benchmarks.training.passes`, `benchmarks.training.traffic`).

`activations`, on a GPU: a training step and the pass of an attack with plain and with fused activations, in
turn (`benchmarks.training.activations`).

`start`: seconds from the start of a run's process to its first step, with cold and warm caches of compiled
code, and what compiling adds (`benchmarks.training.start`).

`overhead`: an adversarial step (PGD-3 on half of a batch of 32) over a clean one at equal precision, neither
compiled nor graphed; `overhead_over_law` is the ratio over the law 1 + 2 K f / 3 (an attack needs input
gradients only).
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Benchmark, middle, parser, ratio, spread
from benchmarks.training import train_runs
from benchmarks.training.activations import add_activations
from benchmarks.training.overhead import LAW, SIZE, overhead
from benchmarks.training.passes import add_passes
from benchmarks.training.precision import chosen_precision, default_precision
from benchmarks.training.start import add_starts
from benchmarks.training.train_runs import FRACTION, STEPS, Rate, RunPlan

APART = 0.1  # of the peer's last loss: with a larger difference the two runs train on different things
RATIOS = {
    "ratio_peer_loop": ("ours", "peer"),
    "ratio_peer_loop_fp32": ("ours_fp32", "peer_fp32"),
    "ratio_peer_tuned": ("ours", "peer_tuned"),
    "ratio_peer_tuned_fp32": ("ours_fp32", "peer_tuned_fp32"),
}
PARTS = ("peer", "activations", "passes", "overhead", "start")
QUICK = ("peer", "ours", "ours_fp32", "peer_fp32")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Measure and print two tables."""
    words = parser(__doc__, resumable=True)
    words.add_argument("--networks", nargs="+", help="compact with --quick, else inception and cnn")
    words.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    words.add_argument("--rounds", type=int, default=3, help="runs of each rival; 1 with --quick")
    options = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # otherwise ranks and folders would stay
    benchmark = Benchmark("step", options.json, options.quick, options.minutes)
    networks = options.networks or (["compact"] if options.quick else ["inception", "cnn"])
    repeat, more = 1 if options.quick else options.rounds, 3 if options.quick else 7
    benchmark.add(law=LAW, steps=STEPS, fraction=FRACTION, batch=SIZE)
    if "peer" in options.parts:
        # Fails at once where the peer is missing: all its runs would fail.
        benchmark.add(peer_versions=benchmark.attempt("peer versions", train_runs.peer_versions))
        against_peer(networks, repeat, options.quick, benchmark)
        add_ratios(benchmark)
    if not options.quick and not options.networks:
        networks = ["compact", *networks]
    if "activations" in options.parts and DEVICE.type == "cuda":
        add_activations(networks, more, DEVICE, benchmark)
    if "passes" in options.parts:
        add_passes(networks, more, DEVICE, benchmark)
    if "overhead" in options.parts:
        overhead(networks, more, benchmark)
    if "start" in options.parts:
        add_starts(networks, 128 if DEVICE.type == "cuda" else 64, repeat, benchmark)
    benchmark.end()


def add_ratios(benchmark: Benchmark) -> None:
    """Add and print, for each ratio, the smallest of all networks."""
    for name in RATIOS:
        known = [found.get(name) for found in benchmark.figures["peer"].values()]
        benchmark.add(**{name: min(known) if known and None not in known else None})
        if benchmark.figures[name] is not None:
            print(f"{name:21s} {benchmark.figures[name]:6.2f}")


def against_peer(networks: list[str], repeat: int, quick: bool, benchmark: Benchmark) -> None:
    """Add, by network, what `compared` gives, for runs in turn on one dataset."""
    figures: dict[str, dict[str, Any]] = dict(benchmark.figures.get("peer", {}))
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-step-") as folder:
        data = Path(folder, "data")
        train_runs.write_dataset(data, 8192 if DEVICE.type == "cuda" else 1024)
        heads = f"{'images/s':>9s} {'p20':>9s} {'p80':>9s} {'wait':>6s} {'loss':>6s}"
        print(f"{'network':10s} {'run':16s} {heads}", flush=True)
        for network in networks:
            plan, start, precision = (
                planned(network, data),
                time.perf_counter(),
                chosen_precision(DEVICE, network),
            )
            runs = take_turns(network, rivals(plan, precision, quick), repeat, benchmark)
            found = compared(runs, plan, aliases(precision))
            figures[network] = {"precision": precision, **refused(network, found, benchmark)}
            show(network, figures[network], time.perf_counter() - start)
            benchmark.add(peer=figures)


def aliases(precision: str) -> dict[str, str]:
    """Names of runs that equal another run on this device, and the name of that one."""
    found = {"ours_fp32": "ours", "peer_tuned_fp32": "peer_tuned"} if precision == "fp32" else {}
    if DEVICE.type == "cuda":
        found.pop("ours_fp32", None)  # `auto` in a run may choose another form than `chosen_precision`
    if default_precision(DEVICE) == "fp32":
        found["peer_fp32"] = "peer"
    return found


def rivals(plan: RunPlan, precision: str, quick: bool) -> dict[str, Callable[[], Rate]]:
    """Runs by name, without aliases."""
    found: dict[str, Callable[[], Rate]] = {
        "peer": partial(train_runs.peer, plan, precision=default_precision(DEVICE)),
        "ours": partial(train_runs.ours, plan),
        "peer_tuned": partial(train_runs.peer, plan, tuned=True, precision=precision),
        "ours_fp32": partial(train_runs.ours, plan, {"precision": "fp32"}),
        "peer_fp32": partial(train_runs.peer, plan),
        "peer_tuned_fp32": partial(train_runs.peer, plan, tuned=True),
    }
    same = aliases(precision)
    return {name: run for name, run in found.items() if name not in same and (not quick or name in QUICK)}


def take_turns(
    network: str, runs: dict[str, Callable[[], Rate]], repeat: int, benchmark: Benchmark
) -> dict[str, list[Rate]]:
    """Every run once per round; a run that fails is left out, and the others continue.

    Runs of an earlier process are not repeated.
    """
    benchmark.forget(network)
    before = benchmark.figures.get("runs", {}).get(network, {})
    found = {name: [Rate(**run) for run in before.get(name, [])] for name in runs}
    for number in range(repeat):
        for name in list(found):
            if len(found[name]) > number:
                continue
            rate = benchmark.attempt(f"{network}, {name}", runs[name])
            if rate is not None:
                found[name].append(rate)
                rows = {name: list(map(asdict, rates)) for name, rates in found.items()}
                benchmark.add(runs={**benchmark.figures.get("runs", {}), network: rows})
            elif f"{network}, {name}" in benchmark.failures:
                del found[name]
    return {name: rates for name, rates in found.items() if rates}


def planned(network: str, data: Path) -> RunPlan:
    """Runs of a few seconds: four to six log lines, of which the first is not timed."""
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if gpus:
        return RunPlan(
            network, data, gpus, 128 * gpus, log_steps=40, lines=6, workers=min(8, cores // gpus) or 1
        )
    steps = 4 if network == "compact" else 2
    return RunPlan(network, data, ranks=2, batch=64, log_steps=steps, lines=5 if steps == 2 else 4, workers=1)


def compared(runs: dict[str, list[Rate]], plan: RunPlan, same: dict[str, str]) -> dict[str, Any]:
    """Rates, ratios (medians over rounds), fractions of time spent waiting for data, and last losses.

    Args:
        runs: by name.
        plan: of all.
        same: names of runs that are the same as others.
    """
    runs = runs | {name: runs[other] for name, other in same.items() if other in runs}
    rates = {name: [run.images_per_s for run in found] for name, found in runs.items()}
    per_round = {name: ratio(rates, over, under) for name, (over, under) in RATIOS.items()}
    waits = {name: spread([run.data_wait for run in found]) for name, found in runs.items()}
    losses = {name: spread([run.loss for run in found]) for name, found in runs.items()}
    return {
        "ranks": plan.ranks,
        "batch": plan.batch,
        "timed_steps": plan.steps - plan.log_steps,
        "images_per_s": {name: spread(values) for name, values in rates.items()},
        **{name: middle(found) for name, found in per_round.items()},
        "ratio_per_round": per_round,
        "data_wait": {name: found["median"] for name, found in waits.items()},
        "losses": {name: found["median"] for name, found in losses.items()},
        "speed": {name: dict(found[-1].speed) for name, found in runs.items() if found[-1].speed},
    }


def refused(network: str, figures: dict[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """The figures of `compared` without ratios of runs whose last losses differ, which are failures."""
    found = dict(figures)
    for name, (over, under) in RATIOS.items():
        a, b = (found["losses"].get(run) for run in (over, under))
        if a is not None and b is not None and not abs(a - b) <= APART * b:
            why = f"{over} ends at a loss of {a:.3f} and {under} at {b:.3f}: no ratio is given"
            benchmark.failed(f"{network}, {name}", ValueError(why))
            found |= {name: None, "ratio_per_round": {**found["ratio_per_round"], name: None}}
    return found


def show(network: str, figures: dict[str, Any], seconds: float) -> None:
    """Lines of the first table."""
    for name, rate in figures["images_per_s"].items():
        wait, loss = figures["data_wait"][name], figures["losses"][name]
        three = f"{rate['median']:9.1f} {rate['p20']:9.1f} {rate['p80']:9.1f}"
        print(f"{network:10s} {name:16s} {three} {wait:6.3f} {loss:6.3f}")
    for name, speed in figures["speed"].items():
        print(f"{network:10s} {name:16s} {', '.join(f'{key} {value}' for key, value in speed.items())}")
    known = [f"{name} {figures[name]:.2f}" for name in RATIOS if figures[name] is not None]
    print(f"{network:10s} {', '.join(known)} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
