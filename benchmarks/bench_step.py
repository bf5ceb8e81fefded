"""Adversarial training: a step against a clean one, and our command against the loop a user would write.

python -m benchmarks.bench_step [--quick] [--json PATH]

Run `make peers` first, or have torchattacks in this environment.

`overhead`: an adversarial step (PGD-3 on half of a batch of 32) over a clean one at equal precision;
`overhead_over_law` is the ratio over the law 1 + 2 K f / 3 (an attack needs input gradients only).

`peer`: images a second of `hpcphotoz train` over those of `benchmarks/peers/train.py` (the plain network in
DistributedDataParallel, a DataLoader over h5py, torchattacks.PGD), both started by torchrun on as many ranks:
same dataset, initial weights, global batch, PGD-3 on half of every batch, epsilon 0.1 sky sigma, AdamW, hard
labels. Augmentation is off in ours (`training.augment`), the peer has none. On a CPU: two ranks, one thread
each; on a GPU: a rank each, larger batches, TF32 for all.
`ratio_peer_loop`: ours with bfloat16 over the peer in float32, as it comes; `ratio_peer_loop_fp32`: both in
float32; `ratio_peer_tuned`: ours with bfloat16 over the peer with channels_last, bfloat16 autocast and the
memory kept, all set by hand: what is left of the ratio then is not settings. Rivals take turns, ratios are
medians over the rounds; the first steps of every run, its start and its last checkpoint are not timed.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import train_runs
from benchmarks.harness import arguments, in_turn, record, spread
from benchmarks.train_runs import FRACTION, STEPS, Plan, Rate
from hpcphotoz.config import Config, parse
from hpcphotoz.data.stream import Batch
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.generate import Generator
from hpcphotoz.training.objective import Objective
from hpcphotoz.training.overlap import Off
from hpcphotoz.training.speed import speed_of
from hpcphotoz.training.step import Step
from hpcphotoz.training.work import prepare

SIZE = 32
LAW = 1 + 2 * STEPS * FRACTION / 3
RATIOS = {
    "ratio_peer_loop": ("ours", "peer"),
    "ratio_peer_loop_fp32": ("ours_fp32", "peer"),
    "ratio_peer_tuned": ("ours", "peer_tuned"),
}


def main() -> None:
    """Measure and print two tables."""
    options = arguments(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else ranks and folders would be left behind
    try:
        versions = train_runs.peer_versions()  # before minutes are spent
        figures: dict[str, Any] = {"law": LAW, "steps": STEPS, "fraction": FRACTION, "batch": SIZE}
        networks = ["compact"] if options.quick else ["compact", "cnn", "inception"]
        figures["overhead"] = overhead(networks, repeat=3 if options.quick else 7)
        networks = ["compact"] if options.quick else ["cnn", "inception"]
        figures["peer"] = against_peer(networks, repeat=1 if options.quick else 3)
    except RuntimeError as error:
        sys.exit(f"bench_step: {error}")
    figures["peer_versions"] = versions
    for name in RATIOS:
        figures[name] = min(found[name] for found in figures["peer"].values())
        print(f"{name:21s} {figures[name]:6.2f}")
    record("step", figures, options.json)


def overhead(networks: list[str], repeat: int) -> dict[str, dict[str, Any]]:
    """Network -> precision -> images a second of clean and adversarial steps, their ratio, ratio over law."""
    figures: dict[str, dict[str, Any]] = {}
    print(f"PGD-{STEPS} on {FRACTION:g} of a batch of {SIZE}; law {LAW:g} clean steps")
    print(f"{'network':10s} {'precision':9s} {'clean/s':>8s} {'adv./s':>8s} {'ratio':>6s} {'over law':>8s}")
    for name in networks:
        figures[name] = {}
        for precision in ("fp32", "bf16"):
            times = measure(name, precision, repeat)
            rates = {kind: spread([SIZE / t for t in values]) for kind, values in times.items()}
            ratio = spread([a / c for a, c in zip(times["adversarial"], times["clean"], strict=True)])
            middle, law = ratio["median"], ratio["median"] / LAW
            figures[name][precision] = {"images_per_s": rates, "ratio": ratio, "overhead_over_law": law}
            clean, attacked = rates["clean"]["median"], rates["adversarial"]["median"]
            print(
                f"{name:10s} {precision:9s} {clean:8.1f} {attacked:8.1f} {middle:6.2f} {law:8.3f}", flush=True
            )
    return figures


def measure(network: str, precision: str, repeat: int) -> dict[str, list[float]]:
    """Seconds of clean and adversarial steps, in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    batch = Batch(
        images=0.1 * torch.randn(SIZE, 5, 64, 64, device=device),
        z_spec=0.4 * torch.rand(SIZE, device=device),
        ebv=0.1 * torch.rand(SIZE, device=device),
        object_id=torch.arange(SIZE),
        sky_sigma=torch.full((SIZE, 5), 0.05, device=device),
        position=torch.arange(SIZE),
        size=SIZE,
        index=0,
    )

    def rival(fraction: float) -> object:
        config: Config = parse(
            {
                "model": {"name": network},
                "training": {"precision": precision},
                "attack": {"fraction": fraction, "steps": STEPS},
            },
            "benchmark",
        )
        bins, speed = bins_of(config.model), speed_of(config.training, device)
        model = speed.placed(build(config.model, stamp=64, scale=(0.1,) * 5), device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=speed.fused_adam)
        source = Off(Generator(model, config, bins, speed))
        step = Step(model, optimiser, source, Objective(config, bins), speed)
        return lambda: step(prepare(batch, config, epoch=0, step=0))

    return in_turn({"clean": rival(0.0), "adversarial": rival(FRACTION)}, repeat)  # type: ignore[dict-item]


def against_peer(networks: list[str], repeat: int) -> dict[str, dict[str, Any]]:
    """Network -> what `compared` gives, for runs in turn on one dataset.

    Raises:
        RuntimeError: a run failed; with the last lines that it said.
    """
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-step-") as folder:
        data = Path(folder, "data")
        train_runs.write_dataset(data, 8192 if torch.cuda.is_available() else 1024)
        heads = f"{'images/s':>9s} {'p20':>9s} {'p80':>9s} {'wait':>6s} {'loss':>6s}"
        print(f"\n{'network':10s} {'run':10s} {heads}", flush=True)
        for network in networks:
            plan, start = planned(network, data), time.perf_counter()
            runs: dict[str, list[Rate]] = {"peer": [], "ours": [], "ours_fp32": [], "peer_tuned": []}
            for _ in range(repeat):
                runs["peer"].append(train_runs.peer(plan, tuned=False))
                runs["ours"].append(train_runs.ours(plan, "bf16"))
                runs["ours_fp32"].append(train_runs.ours(plan, "fp32"))
                runs["peer_tuned"].append(train_runs.peer(plan, tuned=True))
            figures[network] = compared(runs, plan)
            show(network, figures[network], time.perf_counter() - start)
    return figures


def planned(network: str, data: Path) -> Plan:
    """Runs of some seconds: four to six lines, of which the first is not timed."""
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if gpus:
        return Plan(
            network, data, gpus, 128 * gpus, log_steps=20, lines=6, workers=min(8, cores // gpus) or 1
        )
    steps = 4 if network == "compact" else 2
    return Plan(network, data, ranks=2, batch=64, log_steps=steps, lines=5 if steps == 2 else 4, workers=1)


def compared(runs: dict[str, list[Rate]], plan: Plan) -> dict[str, Any]:
    """Rates, ratios (medians over rounds), fractions of time spent waiting for data, and last losses."""
    rates = {name: [run.images_per_s for run in found] for name, found in runs.items()}
    per_round = {
        ratio: spread([a / b for a, b in zip(rates[over], rates[under], strict=True)])
        for ratio, (over, under) in RATIOS.items()
    }
    return {
        "ranks": plan.ranks,
        "batch": plan.batch,
        "timed_steps": plan.steps - plan.log_steps,
        "images_per_s": {name: spread(values) for name, values in rates.items()},
        **{name: found["median"] for name, found in per_round.items()},
        "ratio_per_round": per_round,
        "data_wait": {
            name: spread([run.data_wait for run in found])["median"] for name, found in runs.items()
        },
        "losses": {name: spread([run.loss for run in found])["median"] for name, found in runs.items()},
    }


def show(network: str, figures: dict[str, Any], seconds: float) -> None:
    """Lines of the second table."""
    for name, rate in figures["images_per_s"].items():
        wait, loss = figures["data_wait"][name], figures["losses"][name]
        three = f"{rate['median']:9.1f} {rate['p20']:9.1f} {rate['p80']:9.1f}"
        print(f"{network:10s} {name:10s} {three} {wait:6.3f} {loss:6.3f}")
    ratios = ", ".join(f"{name} {figures[name]:.2f}" for name in RATIOS)
    print(f"{network:10s} {ratios} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
