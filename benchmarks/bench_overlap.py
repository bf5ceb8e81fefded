"""Overlap of attacker and learner ranks against plain data parallelism, and the cost of staleness.

python -m benchmarks.bench_overlap [--quick] [--quality TRAIN TEST] [--json PATH]

Speed, on two ranks of one thread each, PGD-3 on half of every batch, in the precision that the device
chooses for itself, in turns:

    alone   the attack and the training (clean pass, adversarial pass, update) of a step, each by itself on
            one core while the other is idle
    ranks   one attacker and one learner, for each `max_staleness`
    data    two ranks that do both on half a batch each: plain data parallelism, `overlap` off

`overlap_efficiency` = max(attack, training) alone / step of `ranks` at its best staleness; 1 is perfect.
`ratio_data_parallel` = rate of `ranks` at its best staleness / rate of `data`.

Quality, with `--quality`: the recipe "adversarial" trained on TRAIN with each staleness and each way for
images and weights to travel, attacked by PGD-10 on TEST: what staleness and fewer bits cost in sigma_MAD.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Benchmark, middle, parser, ratio, spread
from benchmarks.streaming.stream_readers import ROOT
from benchmarks.training import train_runs
from benchmarks.training.precision import chosen_precision
from benchmarks.training.train_runs import FRACTION, STEPS, RunPlan
from hpcphotoz.compute.cost import attack_cost_law
from hpcphotoz.config.load import named

RANKS = {"ranks, staleness 0": 0, "ranks, staleness 1": 1, "ranks, staleness 2": 2}
VARIANTS: dict[str, dict[str, object]] = {
    "off": {},
    "ranks": {"mode": "ranks"},
    "staleness 1": {"mode": "ranks", "max_staleness": 1},
    "staleness 2": {"mode": "ranks", "max_staleness": 2},
    "images in bf16": {"mode": "ranks", "images_transfer": "bf16"},
    "images in int8": {"mode": "ranks", "images_transfer": "int8"},
    "weights in bf16": {"mode": "ranks", "weights_transfer": "bf16"},
    "staleness 1, int8, bf16": {
        "mode": "ranks",
        "max_staleness": 1,
        "images_transfer": "int8",
        "weights_transfer": "bf16",
    },
}


def main() -> None:
    """Measure and print."""
    words = parser(__doc__)
    words.add_argument("--networks", nargs="+", default=["compact", "cnn", "inception"])
    words.add_argument("--quality", nargs=2, metavar=("TRAIN", "TEST"), type=Path, help="datasets")
    words.add_argument("--seeds", type=int, default=1, help="of --quality: training runs a variant")
    words.add_argument("--epochs", type=int, default=12, help="of --quality")
    words.add_argument("--no-speed", action="store_true", help="quality alone")
    options = words.parse_args()
    benchmark = Benchmark("overlap", options.json, options.quick)
    benchmark.add(law=attack_cost_law(STEPS, FRACTION), precision=chosen_precision(torch.device("cpu")))
    if not options.no_speed:
        networks = ["compact"] if options.quick else options.networks
        speed(networks, 1 if options.quick else 3, benchmark)
    if options.quality:
        train, test = options.quality
        quality(train, test, options.seeds, 1 if options.quick else options.epochs, benchmark)
    benchmark.end()


def speed(networks: list[str], repeat: int, benchmark: Benchmark) -> None:
    """Add, by network: seconds a step of each rival, and the ratios."""
    figures: dict[str, dict[str, Any]] = {}
    precision = benchmark.figures["precision"]
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-overlap-") as folder:
        data = Path(folder, "data")
        train_runs.write_dataset(data, 1024)
        print(f"{'network':10s} {'':20s} {'s/step':>8s} {'p20':>8s} {'p80':>8s}")
        for network in networks:
            batch, log_steps = {"compact": (128, 12), "cnn": (128, 4), "inception": (64, 3)}[network]
            plan = RunPlan(network, data, 2, batch, log_steps, lines=5, workers=1)
            seconds: dict[str, list[float]] = {}
            waited = [0.0]
            for _ in range(repeat):
                for name, value in (
                    benchmark.attempt(f"{network}, alone", alone, network, batch) or {}
                ).items():
                    seconds.setdefault(name, []).append(value)
                for name, how in rivals(quick=repeat == 1).items():
                    if f"{network}, {name}" in benchmark.failures:
                        continue
                    options = {"precision": precision, **how}
                    rate = benchmark.attempt(f"{network}, {name}", train_runs.ours, plan, options)
                    if rate is not None:
                        seconds.setdefault(name, []).append(batch / rate.images_per_s)
                        waited.append(rate.data_wait)
            figures[network] = compared(network, batch, seconds, max(waited))
            names = ("overlap_efficiency", "ratio_data_parallel")
            benchmark.add(speed=figures, **{key: {n: f[key] for n, f in figures.items()} for key in names})


def rivals(quick: bool) -> dict[str, dict[str, object]]:
    """Options of each run by bare name; the first two where there is little time."""
    apart = {"mode": "ranks", "attackers": 1}
    found: dict[str, dict[str, object]] = {"data parallel": {}}
    found |= {name: {**apart, "max_staleness": s} for name, s in RANKS.items() if s == 1 or not quick}
    return found


def compared(network: str, batch: int, seconds: dict[str, list[float]], data_wait: float) -> dict[str, Any]:
    """Medians and ratios, printed too; ratios are medians over rounds."""
    spreads = {name: spread(values) for name, values in seconds.items()}
    for name, found in spreads.items():
        print(f"{network:10s} {name:20s} {found['median']:8.3f} {found['p20']:8.3f} {found['p80']:8.3f}")
    run = [name for name in RANKS if name in spreads]
    best = min(run, key=lambda name: spreads[name]["median"], default="")
    alone = [seconds[name] for name in ("attack alone", "training alone") if name in seconds]
    longer = {"longer": [max(pair) for pair in zip(*alone, strict=False)]} if len(alone) == 2 else {}
    efficiency = ratio({**seconds, **longer}, "longer", best)
    against = ratio(seconds, "data parallel", best)
    print(f"{network:10s} best: {best}; overlap_efficiency {middle(efficiency)}, ", end="")
    print(f"ratio_data_parallel {middle(against)}, data wait at most {data_wait:.4f}", flush=True)
    return {
        "batch": batch,
        "seconds": spreads,
        "best": best,
        "overlap_efficiency": middle(efficiency),
        "overlap_efficiency_spread": efficiency,
        "ratio_data_parallel": middle(against),
        "ratio_data_parallel_spread": against,
        "data_wait_max": data_wait,
    }


def alone(network: str, batch: int) -> dict[str, float]:
    """Seconds of the attack and of the training of a step, on one core of an otherwise idle machine."""
    command = [sys.executable, "-m", "benchmarks.training.alone", network, str(batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)
    if found.returncode:
        raise RuntimeError(f"benchmarks.training.alone {network} failed:\n{found.stderr[-2000:]}")
    answer: dict[str, float] = json.loads(found.stdout)
    return answer


def quality(train: Path, test: Path, seeds: int, epochs: int, benchmark: Benchmark) -> None:
    """Add, by variant: sigma_MAD clean and attacked over the seeds."""
    figures: dict[str, Any] = {"epochs": epochs}
    for name in VARIANTS:
        found = benchmark.attempt(f"quality, {name}", robustness, name, train, test, seeds, epochs)
        if found is None:
            continue
        figures[name] = found
        clean, robust = (found[kind]["median"] for kind in ("clean", "pgd"))
        line = f"{name:24s} sigma_MAD {clean:.4f} clean, {robust:.4f} under PGD-10 ({seeds} seeds)"
        print(line, flush=True)
        benchmark.add(quality=figures)


def robustness(variant: str, train: Path, test: Path, seeds: int, epochs: int) -> dict[str, Any]:
    """sigma_MAD, clean and attacked, of a variant by `hpcphotoz train` and `evaluate`.

    Raises:
        RuntimeError: a command fails.
    """
    how = VARIANTS[variant]
    python: list[str | Path] = ["-m", "hpcphotoz"]
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-quality-") as folder:
        runs = [Path(folder, f"seed-{seed}") for seed in range(seeds)]
        for seed, run in enumerate(runs):
            words = [*python, "train", "adversarial", "--data", train, "--out", run]
            words += [f"--{key}={value}" for key, value in named({**how, "seed": seed}).items()]
            words += ["--overlap.attackers=1"] if how else []
            train_runs.launch(variant, Path(sys.executable), 2, [*words, f"--run.epochs={epochs}"])
        command = [*python, "evaluate", *runs, "--data", test, "--out", Path(folder, "report")]
        command += ["--attacks", "pgd", "--eps", "0.1", "--json"]
        command += ["--precision", chosen_precision(torch.device("cpu"))]
        found = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=1800,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if found.returncode:
            raise RuntimeError(f"evaluate failed:\n{found.stderr[-2000:]}")
        answer = json.loads(found.stdout)
        return {
            kind: spread([answer[run.name][kind]["sigma_mad"] for run in runs]) for kind in ("clean", "pgd")
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
