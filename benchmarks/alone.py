"""Seconds of the parts of a training step by themselves: python -m benchmarks.alone NETWORK BATCH

Prints JSON: "attack alone", the attacked half of a batch by PGD-3; "training alone", clean pass, adversarial
pass and update of the whole batch, with attacked images that are there already. Medians.
"""

import json
import sys

import torch

from benchmarks.galaxies import SKY, STAMP, galaxies
from benchmarks.harness import in_turn, spread
from benchmarks.precision import chosen
from benchmarks.train_runs import EPS, FRACTION, STEPS
from hpcphotoz.config import parse
from hpcphotoz.data.stream import Batch
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.generate import Generator
from hpcphotoz.training.objective import Objective
from hpcphotoz.training.overlap import Serial
from hpcphotoz.training.speed import speed_of
from hpcphotoz.training.step import Step
from hpcphotoz.training.work import prepare

_ROUNDS = 7


def main() -> None:
    """Measure and print."""
    network, size = sys.argv[1], int(sys.argv[2])
    keep_freed_memory()
    config = parse(
        {
            "model": {"name": network},
            "training": {"precision": chosen(torch.device("cpu")), "augment": False},
            "attack": {"fraction": FRACTION, "steps": STEPS, "eps": EPS},
        },
        "benchmark",
    )
    torch.manual_seed(0)
    device, bins = torch.device("cpu"), bins_of(config.model)
    speed = speed_of(config.training, device)
    model = build(config.model, stamp=STAMP, scale=tuple(10 * sigma for sigma in SKY))
    model = speed.placed(model, device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=speed.fused_adam)
    images, ebv, z = galaxies(size, seed=3)
    number = torch.arange(size)
    batch = Batch(images, z, ebv, number, torch.tensor(SKY).expand(size, -1), number, size, 0)
    generate = Generator(model, config, bins, speed)
    work = prepare(batch, config, 0, 0)
    adv = generate(work)
    step = Step(model, optimiser, Serial(lambda work: adv), Objective(config, bins), speed)
    times = in_turn({"attack alone": lambda: generate(work), "training alone": lambda: step(work)}, _ROUNDS)
    print(json.dumps({name: spread(values)["median"] for name, values in times.items()}))


if __name__ == "__main__":
    main()
