"""An adversarial step over a clean one, and over the law 1 + 2 K f / 3."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import Benchmark, in_turn, ratio, spread
from benchmarks.training.precision import chosen_precision
from benchmarks.training.steps import assembled
from benchmarks.training.train_runs import FRACTION, STEPS
from hpcphotoz.compute.cost import attack_cost_law
from hpcphotoz.config.load import configure

SIZE = 32
LAW = attack_cost_law(STEPS, FRACTION)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def overhead(networks: list[str], repeat: int, benchmark: Benchmark) -> None:
    """Add, by network and precision: images a second of clean and adversarial steps, and their ratio."""
    figures: dict[str, dict[str, Any]] = {name: {} for name in networks}
    print(f"\nPGD-{STEPS} on {FRACTION:g} of a batch of {SIZE}; law {LAW:g} clean steps")
    print(f"{'network':10s} {'precision':9s} {'clean/s':>8s} {'adv./s':>8s} {'ratio':>6s} {'over law':>8s}")
    for name in networks:
        for precision in sorted({"fp32", chosen_precision(DEVICE, name)}):
            times = benchmark.attempt(f"overhead, {name}, {precision}", measure, name, precision, repeat)
            if times is None:
                continue
            rates = {kind: spread([SIZE / t for t in values]) for kind, values in times.items()}
            compared = ratio(times, "adversarial", "clean")
            assert compared
            over = compared["median"] / LAW
            figures[name][precision] = {"images_per_s": rates, "ratio": compared, "overhead_over_law": over}
            clean, attacked = rates["clean"]["median"], rates["adversarial"]["median"]
            three = f"{clean:8.1f} {attacked:8.1f} {compared['median']:6.2f}"
            print(f"{name:10s} {precision:9s} {three} {over:8.3f}", flush=True)
            benchmark.add(overhead=figures)


def measure(network: str, precision: str, repeat: int) -> dict[str, list[float]]:
    """Seconds of clean and adversarial steps, in turn."""

    def rival(fraction: float) -> Callable[[], object]:
        config = configure(
            "benchmark",
            **{"name": network, "precision": precision, "compiled": "off", "graphs": "off"},
            **{"fraction": fraction, "steps": STEPS},
        )
        return assembled(config, SIZE, DEVICE)[0]

    return in_turn({"clean": rival(0.0), "adversarial": rival(FRACTION)}, repeat)
