"""Seconds of the parts of a training step by themselves: python -m benchmarks.training.alone NETWORK BATCH

Prints JSON: "attack alone", the attacked half of a batch by PGD-3; "training alone", clean pass, adversarial
pass and update of the whole batch, with attacked images that are there already. Medians.
"""

import json
import sys

import torch

from benchmarks.galaxies import SKY, STAMP, galaxies
from benchmarks.harness import in_turn, spread
from benchmarks.training.precision import chosen
from benchmarks.training.train_runs import EPS, FRACTION, STEPS
from hpcphotoz.config.load import configure
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.adversaries import StepAttack
from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.overlap.streams import SerialOverlap
from hpcphotoz.training.rank_batch import make_rank_batch
from hpcphotoz.training.step import Step

_ROUNDS = 7


def main() -> None:
    """Measure and print."""
    network, size = sys.argv[1], int(sys.argv[2])
    keep_freed_memory()
    precision = chosen(torch.device("cpu"))
    config = configure(
        "benchmark",
        **{"name": network, "precision": precision, "augment": False},
        **{"fraction": FRACTION, "steps": STEPS, "eps": EPS},
    )
    torch.manual_seed(0)
    device, bins = torch.device("cpu"), bins_of(config.model)
    compute = compute_options(config.compute, device)
    model = build(config.model, stamp=STAMP, scale=tuple(10 * sigma for sigma in SKY))
    model = compute.placed(model, device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=compute.fused_adam)
    images, ebv, z = galaxies(size, seed=3)
    number = torch.arange(size)
    batch = Batch(images, z, ebv, number, torch.tensor(SKY).expand(size, -1), number, size, 0)
    generate = StepAttack(model, config, bins, compute)
    rank_batch = make_rank_batch(batch, config, 0, 0)
    adv = generate(rank_batch)
    step = Step(
        model, optimiser, SerialOverlap(lambda rank_batch: adv), TrainingObjective(config, bins), compute
    )
    times = in_turn(
        {"attack alone": lambda: generate(rank_batch), "training alone": lambda: step(rank_batch)}, _ROUNDS
    )
    print(json.dumps({name: spread(values)["median"] for name, values in times.items()}))


if __name__ == "__main__":
    main()
