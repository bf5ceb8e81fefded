"""Scaling of adversarial training with ranks: measured on this machine's cores, predicted for GPUs.

python -m benchmarks.bench_scaling [--quick] [--json PATH] [--plot PNG] [--precision P] [--gpu-json PATH]

Training (`hpcphotoz train`, bfloat16, PGD-3 on half of each batch) runs by torchrun on 1, 2 and 4 gloo ranks
of one thread; the cases take turns. Strong: 64 images a step on all ranks; weak: 32 on each. `apart`: two
runs of one rank at the same time, without communication: what they lose is due to the machine. Rows of more
ranks than cores are marked: they measure the machine. scaling_model.py has the model, scaling_predict.py its
numbers: family `gloo` is GPUs joined by the all-reduce measured here, `cluster` GPUs joined as assumed there.
--gpu-json: a record of bench_step on a GPU; its rate replaces the assumed one. Takes 9 minutes on an idle
machine of two cores, 2 with --quick (one round, which shows that everything runs).
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness import Benchmark, parser, spread
from benchmarks.scaling import scaling_predict
from benchmarks.scaling.allreduce import LARGEST, measure
from benchmarks.scaling.scaling_model import (
    Assumptions,
    Attack,
    Point,
    Quantity,
    fit_ring,
    fit_step,
    gradients_s,
    ring_s,
    strong,
    weak,
)
from benchmarks.training import train_runs
from benchmarks.training.galaxies import SKY, STAMP, configuration
from benchmarks.training.precision import chosen_precision
from benchmarks.training.train_runs import FRACTION, STEPS, Rate, RunPlan
from hpcphotoz.compute.cost import attack_cost_law, flops
from hpcphotoz.errors import BadInput
from hpcphotoz.models.build import build

ATTACK = Attack(STEPS, FRACTION)
RANKS, WEAK, STRONG = (1, 2, 4), 32, 64
LOG_STEPS, LINES = {"compact": 4, "cnn": 2, "inception": 1}, 3  # the first line is warm-up
CORES = os.cpu_count() or 1
Rates = dict["Case", list[Rate]]


class Case(NamedTuple):
    """Runs that are started together: `copies` of one of `ranks` ranks and `batch` images a step."""

    network: str
    ranks: int
    batch: int
    copies: int = 1


def main() -> None:
    """Measure, predict, print tables, draw."""
    words = parser(__doc__)
    words.add_argument("--plot", type=Path, help="draw here (PNG)")
    usual = chosen_precision(torch.device("cpu"))
    words.add_argument("--precision", choices=["fp32", "bf16"], default=usual, help="of the training")
    words.add_argument("--gpu-json", type=Path, help="what was measured on one GPU")
    options = words.parse_args()
    networks = ["compact"] if options.quick else ["cnn", "inception"]
    benchmark = Benchmark("scaling", options.json, options.quick)
    try:
        if options.plot:
            from benchmarks.scaling.scaling_plot import draw  # fails at once where matplotlib is missing
        images = {
            name: scaling_predict.gpu_image(options.gpu_json, name, ATTACK)
            for name in networks
            if options.gpu_json
        }
    except BadInput as error:
        sys.exit(f"bench_scaling: {error}")
    benchmark.add(precision=options.precision, cores=CORES, attack=ATTACK._asdict())
    kinds, ranks = ("weak", "strong", "apart"), RANKS[:2] if options.quick else RANKS
    every = [case for kind in kinds for case in cases(kind, networks, ranks)]
    with without_gpus():
        found = take_turns(every, options.precision, 1 if options.quick else 3, benchmark)
    waits = [rate.data_wait for rates in found.values() for rate in rates]
    for kind in kinds:
        known = [case for case in cases(kind, networks, ranks) if {case, single(case, kind)} <= set(found)]
        benchmark.add(**{kind: [row(found, case, kind) for case in known]})
    largest, rounds = (LARGEST // 8, 3) if options.quick else (LARGEST, 5)
    gpus, among = torch.cuda.device_count(), None
    reduced = benchmark.attempt("all-reduce, gloo", allreduce, "gloo", (2, 4), CORES, largest, rounds)
    if gpus > 1:
        sizes = [p for p in (2, 4, 8) if p <= gpus]
        among = benchmark.attempt("all-reduce, nccl", allreduce, "nccl", sizes, gpus, largest, rounds)
    benchmark.add(data_wait_max=max(waits, default=None), allreduce=reduced, allreduce_nccl=among)
    # The model of a network is fitted to all of its cases.
    whole = [n for n in networks if all(case in found for case in every if case.network == n)]
    models = {name: model(name, benchmark.figures, images.get(name)) for name in whole if reduced}
    benchmark.add(model=models)
    show(benchmark.figures)
    if options.plot and models:
        options.plot.write_bytes(draw(benchmark.figures))
    benchmark.end()


@contextmanager
def without_gpus() -> Iterator[None]:
    """Processes started in this block train on the CPU with gloo, also on a machine with GPUs."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def cases(kind: str, networks: Sequence[str], ranks: Sequence[int]) -> list[Case]:
    """The cases of one kind: "weak", "strong" or "apart"."""
    if kind == "apart":
        return [Case(name, 1, WEAK, copies=2) for name in networks]
    return [Case(name, p, p * WEAK if kind == "weak" else STRONG) for name in networks for p in ranks]


def take_turns(every: Sequence[Case], precision: str, rounds: int, benchmark: Benchmark) -> Rates:
    """Run every case once a round, without those that fail; each run leaves out its own first steps."""
    found: Rates = {case: [] for case in every}
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-scaling-") as folder:
        data = Path(folder, "data")
        train_runs.write_dataset(data, 1024)
        for number in range(rounds):
            for case in list(found):
                twice = ", twice" * (case.copies > 1)
                what = f"{case.network}, {case.ranks} ranks, {case.batch} a step{twice}"
                rate = benchmark.attempt(what, train, case, precision, data)
                if rate is not None:
                    found[case].append(rate)
                    print(
                        f"round {number + 1} of {rounds}: {what}: {rate.images_per_s:.1f} images/s",
                        flush=True,
                    )
                elif what in benchmark.failures:
                    del found[case]
    return {case: rates for case, rates in found.items() if rates}


def train(case: Case, precision: str, data: Path) -> Rate:
    """Rate of one copy of a run: the mean over all."""
    plan = RunPlan(case.network, data, case.ranks, case.batch, LOG_STEPS[case.network], LINES, workers=0)
    with ThreadPoolExecutor(case.copies) as pool:
        runs = list(pool.map(lambda _: train_runs.ours(plan, {"precision": precision}), range(case.copies)))
    rate = sum(run.images_per_s for run in runs) / len(runs)
    return Rate(rate, max(run.data_wait for run in runs), runs[0].loss)


def single(case: Case, kind: str) -> Case:
    """The case that efficiencies refer to: one rank with the batch of this kind."""
    return Case(case.network, 1, STRONG if kind == "strong" else WEAK)


def row(found: Rates, case: Case, kind: str) -> dict[str, Any]:
    """Rate of a case and efficiency against one rank in the same round."""
    rates, alone = ([rate.images_per_s for rate in found[c]] for c in (case, single(case, kind)))
    efficiency = [a / case.ranks / b for a, b in zip(rates, alone, strict=False)]
    return {
        **case._asdict(),
        "images_per_s": spread(rates),
        "efficiency": spread(efficiency),
        "oversubscribed": case.ranks * case.copies > CORES,
    }


def allreduce(backend: str, ranks: Sequence[int], places: int, largest: int, rounds: int) -> dict[str, Any]:
    """Times by message size, and the ring fitted to worlds with a core (or GPU) a rank, if any."""
    points: list[dict[str, Any]] = []
    for p in ranks:
        for size, seconds in measure(backend, p, largest, rounds).items():
            points.append(
                {"ranks": p, "bytes": size, "seconds": spread(seconds), "oversubscribed": p > places}
            )
    fair = [point for point in points if not point["oversubscribed"]] or points
    alpha, beta = fit_ring([Point(r["ranks"], r["bytes"], r["seconds"]["median"]) for r in fair])
    expected = [ring_s(r["ranks"], r["bytes"], alpha, beta) for r in points]
    residuals = [e / r["seconds"]["median"] - 1 for e, r in zip(expected, points, strict=True)]
    fit = {"alpha": alpha, "beta": beta, "bandwidth": 1 / beta if beta else None}  # s, s/byte, byte/s
    return {"backend": backend, "points": points, "fitted": len(fair), **fit, "residuals": residuals}


def model(network: str, figures: dict[str, Any], image: Quantity | None) -> dict[str, Any]:
    """The model's efficiencies beside the measured ones, an all-reduce's share, and predictions for GPUs."""
    module = build(configuration(network).model, stamp=STAMP, scale=(0.1,) * len(SKY))
    sizes = [parameter.numel() for parameter in module.parameters()]
    work = flops(lambda: module(torch.zeros(1, len(SKY), STAMP, STAMP), torch.zeros(1)).sum().backward())

    def seconds(kind: str, ranks: int) -> float:
        found = next(r for r in figures[kind] if (r["network"], r["ranks"]) == (network, ranks))
        return float(found["batch"] / found["images_per_s"]["median"])

    one, two = seconds("weak", 1), seconds("weak", 2)
    fitted, update = fit_step((WEAK, one), (STRONG, seconds("strong", 1)))
    ring = figures["allreduce"]
    here = scaling_predict.core(
        fitted / attack_cost_law(*ATTACK), update, sum(sizes), ring["alpha"], ring["beta"]
    )
    gpus = scaling_predict.on_gpus(here, work, len(sizes), image)
    families = {"gloo": gpus, "cluster": scaling_predict.on_cluster(gpus)}
    return {
        "flops_per_image": work,
        "parameters": sum(sizes),
        "here": {
            "assumptions": named(here),
            "weak": {p: weak(here, p, WEAK, ATTACK) / max(1, p / CORES) for p in RANKS},
            "strong": {p: strong(here, p, STRONG, ATTACK) / max(1, p / CORES) for p in RANKS},
        },
        "two_ranks": {  # s a step
            "allreduce_predicted": gradients_s(here, 2),
            "slower_than_one": two - one,
            "slower_than_two_apart": two - seconds("apart", 1),
        },
        **{
            name: {"assumptions": named(a), "predictions": scaling_predict.table(a)}
            for name, a in families.items()
        },
    }


def named(a: Assumptions) -> dict[str, Any]:
    """Every assumption by name, with unit and source."""
    return {name: dict(zip(Quantity._fields, found, strict=True)) for name, found in asdict(a).items()}


def show(figures: dict[str, Any]) -> None:
    """Tables on the terminal."""
    print(f"\n{'':7s} {'network':10s} ranks batch {'images/s':>18s} efficiency  model")
    for kind in ("weak", "strong", "apart"):
        for r in figures[kind]:
            rate, modelled = r["images_per_s"], figures["model"].get(r["network"])
            found = modelled["here"].get(kind, {}) if modelled else {}
            interval = f"{rate['median']:.1f} ({rate['p20']:.1f}-{rate['p80']:.1f})"
            note = f"  more ranks than the {CORES} cores: measures the machine" if r["oversubscribed"] else ""
            expected = f"{found[r['ranks']]:6.2f}" if found else " " * 6
            print(f"{kind:7s} {r['network']:10s} {r['ranks']:5d} {r['batch']:5d} {interval:>18s} ", end="")
            print(f"{r['efficiency']['median']:10.2f} {expected}{note}")
    print(f"largest data_wait {figures['data_wait_max']}")
    for found in filter(None, (figures["allreduce"], figures["allreduce_nccl"])):
        worst = max(map(abs, found["residuals"][: found["fitted"]]))
        print(f"all-reduce, {found['backend']}: alpha {1e6 * found['alpha']:.1f} us, ", end="")
        print(f"beta {1e9 * found['beta']:.3f} ns/byte, largest residual of the fitted {100 * worst:.0f} %")
    for network, found in figures["model"].items():
        of_two = ", ".join(f"{key} {1e3 * value:.1f} ms" for key, value in found["two_ranks"].items())
        print(f"{network}, a step of two ranks: {of_two}\n{'family':8s} {'':7s} {'ranks':>5s}", end="")
        print("".join(f"{name + ': ms, efficiency':>26s}" for name in scaling_predict.ATTACKS))
        for family in ("gloo", "cluster"):
            rows = {(r["scaling"], r["ranks"], r["attack"]): r for r in found[family]["predictions"]}
            for scaling, p in ((s, p) for s in ("weak", "strong") for p in (1, 8, 64, 256, 1024)):
                three = [rows[scaling, p, name] for name in scaling_predict.ATTACKS]
                line = "".join(f"{1e3 * r['step_s']:17.2f} {r['efficiency']:8.3f}" for r in three)
                print(f"{family:8s} {scaling:7s} {p:5d}{line}")


if __name__ == "__main__":
    main()
