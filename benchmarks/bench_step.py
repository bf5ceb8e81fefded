"""An adversarial training step against a clean one and the cost law 1 + 2 K f / 3 (input gradients only).

python -m benchmarks.bench_step [--quick] [--json PATH]
"""

import torch

from benchmarks.harness import arguments, in_turn, record, spread
from hpcphotoz.config import Config, parse
from hpcphotoz.data.stream import Batch
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.step import optimisation_step

K, FRACTION, SIZE = 3, 0.5, 32


def main() -> None:
    """Measure and print a table."""
    options = arguments(__doc__)
    networks = ["compact"] if options.quick else ["compact", "cnn", "inception"]
    repeat = 3 if options.quick else 7
    law = 1 + 2 * K * FRACTION / 3
    figures: dict[str, object] = {"law": law, "steps": K, "fraction": FRACTION, "batch": SIZE}
    print(f"PGD-{K} on {FRACTION:g} of a batch of {SIZE}; law {law:g} clean steps")
    print(f"{'network':10s} {'precision':9s} {'clean/s':>8s} {'adv./s':>8s} {'ratio':>6s} {'over law':>8s}")
    for name in networks:
        for precision in ("fp32", "bf16"):
            times = measure(name, precision, repeat)
            ratios = [a / c for a, c in zip(times["adversarial"], times["clean"], strict=True)]
            rates = {kind: spread([SIZE / t for t in values]) for kind, values in times.items()}
            ratio = spread(ratios)
            figures[f"{name}_{precision}"] = {
                "images_per_s": rates,
                "ratio": ratio,
                "overhead_over_law": ratio["median"] / law,
            }
            clean, attacked = rates["clean"]["median"], rates["adversarial"]["median"]
            middle = ratio["median"]
            print(f"{name:10s} {precision:9s} {clean:8.1f} {attacked:8.1f} {middle:6.2f} {middle / law:8.3f}")
    record("step", figures, options.json)


def measure(network: str, precision: str, repeat: int) -> dict[str, list[float]]:
    """Seconds of clean and adversarial steps, in turn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    batch = Batch(
        images=0.1 * torch.randn(SIZE, 5, 64, 64, device=device),
        z_spec=0.4 * torch.rand(SIZE, device=device),
        ebv=0.1 * torch.rand(SIZE, device=device),
        object_id=torch.arange(SIZE, device=device),
        sky_sigma=torch.full((SIZE, 5), 0.05, device=device),
        position=torch.arange(SIZE, device=device),
        size=SIZE,
        index=0,
    )

    def rival(fraction: float) -> object:
        config: Config = parse(
            {
                "model": {"name": network},
                "training": {"precision": precision},
                "attack": {"fraction": fraction, "steps": K},
            },
            "benchmark",
        )
        model = build(config.model, stamp=64, scale=(0.1,) * 5)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
        bins = bins_of(config.model)
        return lambda: optimisation_step(model, optimiser, batch, config, bins, epoch=0, world_size=1)

    return in_turn({"clean": rival(0.0), "adversarial": rival(FRACTION)}, repeat)  # type: ignore[dict-item]


if __name__ == "__main__":
    main()
