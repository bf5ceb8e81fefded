"""What each speed option does to a training step on the device at hand: defaults are chosen by this table.

python -m benchmarks.bench_options [--quick] [--networks cnn inception] [--json PATH]

Every rival is the default with one option changed, and takes the same adversarial step in turn with it
(PGD-3 on half of a batch of 64 on a CPU, PGD-10 on half of 256 on a GPU); "clean" has no attack. `ratio` is
its rate over the default's. `fraction_of_device` is the operations counted in a step over its time, over the
rate of square matrix products in the same precision; `memory_gb` is the peak of a GPU's memory.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.galaxies import SKY, STAMP, galaxies
from benchmarks.harness import in_turn, parser, record, spread
from hpcphotoz.config import Config, parse
from hpcphotoz.data.stream import Batch
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.generate import Generator
from hpcphotoz.training.graphed import GraphedStep
from hpcphotoz.training.objective import Objective
from hpcphotoz.training.overlap import Off, Streams
from hpcphotoz.training.profile import matrix_rate, operations
from hpcphotoz.training.speed import speed_of
from hpcphotoz.training.step import Step
from hpcphotoz.training.work import Work, prepare

EVERYWHERE: dict[str, dict[str, object]] = {
    "default again": {},
    "clean": {},
    "all float32": {"precision": "fp32"},
    "attack float32": {"attack_precision": "fp32"},
    "channels_last off": {"channels_last": "off"},
    "merged": {"merged": "on"},
    "padded": {"padded": "on"},
    "merged, padded": {"merged": "on", "padded": "on"},
    "Adam not fused": {"fused_adam": "off"},
}
ON_CPU: dict[str, dict[str, object]] = {
    "micro_batch 16": {"micro_batch": 16},
    "micro_batch 64": {"micro_batch": 64},
}
ON_GPU: dict[str, dict[str, object]] = {
    "streams": {"overlap": "streams"},
    "graphs attack": {"graphs": "attack"},
    "graphs attack, streams": {"graphs": "attack", "overlap": "streams"},
    "graphs step": {"graphs": "step"},
    "micro_batch 64": {"micro_batch": 64},
    "compiled": {"compiled": "on"},
}
Taker = Callable[[Work], object]


def main() -> None:
    """Measure and print a table."""
    words = parser(__doc__)
    words.add_argument("--networks", nargs="+", default=["cnn", "inception"])
    options = words.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.set_float32_matmul_precision("high")  # TF32, as every peer here
    rates = {"bf16": matrix_rate(device, torch.bfloat16), "fp32": matrix_rate(device, None)}
    figures: dict[str, Any] = {"device_operations_per_s": rates}
    for network in options.networks:
        figures[network] = measured(network, device, rates, 2 if options.quick else 5)
    record("options", figures, options.json)


def measured(network: str, device: torch.device, rates: dict[str, float], repeat: int) -> dict[str, Any]:
    """Rival -> images a second, ratio to the default, fraction of the device's rate, memory."""
    on_gpu = device.type == "cuda"
    size, steps = (256, 10) if on_gpu else (64, 3)
    usual, _ = prepared(configured(network, {}, 0.5, steps), size, device)
    print(f"{'network':10s} {'':24s} {'images/s':>9s} {'ratio':>6s} {'of device':>9s} {'GB':>6s}")
    found: dict[str, Any] = {"batch": size, "attack_steps": steps}
    for name, how in (EVERYWHERE | (ON_GPU if on_gpu else ON_CPU)).items():
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        take, operations = prepared(configured(network, how, 0.5 * (name != "clean"), steps), size, device)
        try:
            times = in_turn({"default": usual, name: take}, repeat)
        except RuntimeError as error:  # an option that this torch cannot do is a result, not an end
            found[name] = {"fails": str(error).strip().splitlines()[0][:200]}
            print(f"{network:10s} {name:24s} fails: {found[name]['fails']}", flush=True)
            continue
        rate = spread([size / t for t in times[name]])
        ratio = spread([d / t for d, t in zip(times["default"], times[name], strict=True)])
        part = operations * rate["median"] / size / rates["fp32" if name == "all float32" else "bf16"]
        memory = (torch.cuda.max_memory_allocated() - before) / 1e9 if on_gpu else None
        found[name] = {"images_per_s": rate, "ratio": ratio, "fraction_of_device": part, "memory_gb": memory}
        line = f"{network:10s} {name:24s} {rate['median']:9.1f} {ratio['median']:6.2f} {part:9.3f}"
        print(line + (f" {memory:6.2f}" if memory is not None else ""), flush=True)
    return found


def configured(network: str, how: dict[str, object], fraction: float, steps: int) -> Config:
    """The default, in bfloat16, with options changed."""
    return parse(
        {
            "model": {"name": network},
            "training": {"precision": "bf16", **how},
            "attack": {"fraction": fraction, "steps": steps},
        },
        "benchmark",
    )


def prepared(config: Config, size: int, device: torch.device) -> tuple[Callable[[], object], float]:
    """What takes a step, and the operations of it."""
    bins, speed = bins_of(config.model), speed_of(config.training, device)
    torch.manual_seed(0)
    module = speed.placed(build(config.model, stamp=STAMP, scale=tuple(10 * s for s in SKY)), device).train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=speed.fused_adam)
    images, ebv, z = (t.to(device) for t in galaxies(size, seed=1))
    number, sky = torch.arange(size), torch.tensor(SKY, device=device).expand(size, -1)
    work = prepare(Batch(images, z, ebv, number, sky, number, size, 0), config, 0, 0)
    generate = Generator(module, config, bins, speed)
    streams = config.training.overlap == "streams"
    source = Streams(generate, device) if streams else Off(generate)
    model = torch.compile(module) if speed.compiled else module
    step = Step(model, optimiser, source, Objective(config, bins), speed)  # type: ignore[arg-type]
    take: Taker = step
    if speed.graphs == "step":
        take = GraphedStep(step, module, optimiser, config.training)
    plain = replace(speed, graphs="off")
    passed, attacked = operations(module, lambda m, two: Generator(m, config, bins, plain)(two), work)
    return lambda: take(work), passed * size + attacked * len(work.attacked)


if __name__ == "__main__":
    main()
