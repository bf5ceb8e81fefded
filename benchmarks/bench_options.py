"""The effect of options on a training step on this device: the defaults of `compute` are from this table.

python -m benchmarks.bench_options [--quick] [--networks cnn inception] [--minutes M] [--json PATH]

Every rival is the default with one option changed, and takes the same adversarial step in turn with it
(PGD-3 on half of a batch of 64 on a CPU, PGD-10 on half of 256 on a GPU); "clean" has no attack, and
"update not guarded" neither computes the norm of the gradients nor looks whether it is finite. The default
has the precision that the device chooses for itself, and neither compiler nor graphs. `ratio` is a rival's
rate over the default's. `fraction_of_device` is the operations counted in a step over its time, over the rate
of square matrix products in the precision of its training passes. `memory_gb` is the peak of a GPU's memory
while the rival takes its first steps, without what was there before it was made. `streams_over_off` is, for
each form with CUDA graphs, the rate of overlap `streams` over that of none.
A rival that fails is named with its error, and the others go on.
"""

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

from benchmarks.harness import Benchmark, in_turn, parser, ratio, spread
from benchmarks.training.precision import chosen_precision
from benchmarks.training.steps import assembled, unguarded
from hpcphotoz.compute.precision import autocast_dtype, tf32
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.training.run.profiler import matrix_rate, operations

UNGUARDED = "update not guarded"
EVERYWHERE: dict[str, dict[str, object]] = {
    "default again": {},
    "clean": {},
    "all float32": {"precision": "fp32"},
    "all bfloat16": {"precision": "bf16"},
    "attack float32": {"attack_precision": "fp32"},
    "channels_last off": {"channels_last": "off"},
    "Adam not fused": {"fused_adam": "off"},
    "average of the weights": {"ema_decay": 0.999},
    "gradients clipped": {"clip_norm": 1.0},
    UNGUARDED: {},
    "deterministic": {"deterministic": True},
}
ON_CPU: dict[str, dict[str, object]] = {
    "micro_batch 16": {"micro_batch": 16},
    "micro_batch 64": {"micro_batch": 64},
}
ON_GPU: dict[str, dict[str, object]] = {
    "all tf32": {"precision": "tf32"},
    "streams": {"mode": "streams"},
    "graphs attack": {"graphs": "attack"},
    "graphs attack, streams": {"graphs": "attack", "mode": "streams"},
    "graphs step": {"graphs": "step"},
    "graphs step, streams": {"graphs": "step", "mode": "streams"},
    "micro_batch 64": {"micro_batch": 64},
    "compiled": {"compiled": "on"},
    "compiled, graphs attack": {"compiled": "on", "graphs": "attack"},
    "compiled, graphs attack, streams": {"compiled": "on", "graphs": "attack", "mode": "streams"},
    "compiled, graphs step": {"compiled": "on", "graphs": "step"},
    "compiled, graphs step, streams": {"compiled": "on", "graphs": "step", "mode": "streams"},
    "compiled, graphs step, tf32": {"compiled": "on", "graphs": "step", "precision": "tf32"},
    "compiled, graphs step, bfloat16": {"compiled": "on", "graphs": "step", "precision": "bf16"},
}
QUICK = ("clean", "all float32", "all bfloat16", "graphs step", "compiled, graphs step", "micro_batch 16")
FIRST_STEPS = 2  # steps after which the memory of a rival has had its peak
T = TypeVar("T")


def main() -> None:
    """Measure and print a table."""
    words = parser(__doc__, resumable=True)
    words.add_argument("--networks", nargs="+", help="compact with --quick, else cnn and inception")
    options = words.parse_args()
    benchmark = Benchmark("options", options.json, options.quick, options.minutes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    rates: dict[str, float] = {}
    for precision in ("fp32", "tf32", "bf16"):
        with tf32(precision == "tf32"):
            rates[precision] = matrix_rate(device, autocast_dtype(precision))
    benchmark.add(device_operations_per_s=rates)
    for network in options.networks or (["compact"] if options.quick else ["cnn", "inception"]):
        measured(network, device, rates, 2 if options.quick else 5, benchmark)
    benchmark.end()


def measured(
    network: str, device: torch.device, rates: dict[str, float], repeat: int, benchmark: Benchmark
) -> None:
    """Add to the figures, by rival: images a second, ratio to the default, fraction of the device, memory."""
    on_gpu, quick = device.type == "cuda", repeat == 2
    size, steps = (256, 10) if on_gpu else (64, 3)
    precision = chosen_precision(device, network)
    usual: dict[str, object] = {"precision": precision, "compiled": "off", "graphs": "off"}
    config = configured(network, usual, 0.5, steps)
    plain = benchmark.attempt(f"{network}, default", prepared, config, size, device)
    if plain is None:
        return
    default, _ = plain
    print(f"{'network':10s} {'':30s} {'images/s':>9s} {'ratio':>6s} {'of device':>9s} {'GB':>6s}")
    found: dict[str, Any] = {**benchmark.figures.get(network, {})}
    found |= {"batch": size, "attack_steps": steps, "precision": precision}
    # What is on a GPU alone comes first: a limit of time may leave out the rest.
    for name, how in (ON_GPU | EVERYWHERE if on_gpu else EVERYWHERE | ON_CPU).items():
        if quick and name not in QUICK:
            continue
        rival = f"{network}, {name}"
        if (before := benchmark.earlier(network, name)) is not None:
            found[name] = before
            continue
        config = configured(network, {**usual, **how}, 0.5 * (name != "clean"), steps)
        with unguarded() if name == UNGUARDED else nullcontext():
            figures = benchmark.attempt(rival, against, default, config, size, device, rates, repeat)
        # The memory of a rival is freed before the next one starts.
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
        if figures is None:
            found[name] = {"fails": benchmark.failures.get(rival, "no time")}
        else:
            found[name] = figures
            rate, of_default, memory = (figures[key] for key in ("images_per_s", "ratio", "memory_gb"))
            line = f"{rate['median']:9.1f} {of_default['median']:6.2f} {figures['fraction_of_device']:9.3f}"
            print(
                f"{network:10s} {name:30s} {line}" + ("" if memory is None else f" {memory:6.2f}"), flush=True
            )
        benchmark.add(**{network: found})
    found["streams_over_off"] = streams_over_off(found)
    benchmark.add(**{network: found})
    for form, times in found["streams_over_off"].items():
        print(f"{network:10s} streams over off, {form}: {times:.3f}", flush=True)


def streams_over_off(found: Mapping[str, Any]) -> dict[str, float]:
    """Rate of overlap `streams` over that of none, by form with CUDA graphs, where both were measured."""
    measured = {name: one for name, one in found.items() if isinstance(one, dict) and "ratio" in one}
    rates = {name: one["ratio"]["median"] for name, one in measured.items()}
    pairs = {name.removesuffix(", streams"): name for name in rates if name.endswith(", streams")}
    return {form: rates[streams] / rates[form] for form, streams in pairs.items() if form in rates}


def against(
    default: Callable[[], object],
    config: Config,
    size: int,
    device: torch.device,
    rates: dict[str, float],
    repeat: int,
) -> dict[str, Any]:
    """Figures of a rival that takes turns with the default.

    Args:
        default: takes the default's step.
        config: the rival's.
        size: objects a step.
        device: where.
        rates: operations a second of matrix products, by precision.
        repeat: rounds.
    """
    memory, (take, counted) = peak_gb(lambda: stepped(config, size, device), device)
    times = in_turn({"default": default, "rival": take}, repeat)
    rate, of_default = spread([size / t for t in times["rival"]]), ratio(times, "default", "rival")
    part = counted * rate["median"] / size / rates[config.compute.precision]
    return {"images_per_s": rate, "ratio": of_default, "fraction_of_device": part, "memory_gb": memory}


def stepped(config: Config, size: int, device: torch.device) -> tuple[Callable[[], object], float]:
    """The result of `prepared`, after the first steps."""
    take, counted = prepared(config, size, device)
    for _ in range(FIRST_STEPS):
        take()
    return take, counted


def peak_gb(work: Callable[[], T], device: torch.device) -> tuple[float | None, T]:
    """Peak of a GPU's memory during a call, above what is allocated already; None on a CPU.

    Returns:
        Gigabytes, and the result of the work.
    """
    if device.type != "cuda":
        return None, work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    given = work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9, given


def configured(network: str, options: dict[str, object], fraction: float, steps: int) -> Config:
    """Options by bare name, and PGD on a fraction of the batch."""
    return configure("benchmark", name=network, fraction=fraction, steps=steps, **options)


def prepared(config: Config, size: int, device: torch.device) -> tuple[Callable[[], object], float]:
    """A function that takes a training step, and the number of operations of the step."""
    step, components, rank_batch = assembled(config, size, device)
    passed, attacked = operations(components.module, components.attack_eagerly, rank_batch)
    return step, passed * size + attacked * len(rank_batch.attacked)


if __name__ == "__main__":
    main()
