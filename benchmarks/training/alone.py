"""Seconds of the parts of a training step, each alone: python -m benchmarks.training.alone NETWORK BATCH

Prints JSON: "attack alone", the attacked half of a batch by PGD-3; "training alone", clean pass, adversarial
pass and update of the whole batch, with attacked images that are there already. Medians.
"""

import json
import sys

import torch

from benchmarks.harness import in_turn, spread
from benchmarks.training.galaxies import SKY, STAMP, galaxies
from benchmarks.training.precision import chosen_precision
from benchmarks.training.train_runs import EPS, FRACTION, STEPS
from hpcphotoz.config.load import configure
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.overlap.streams import SerialOverlap
from hpcphotoz.training.rank_batch import make_rank_batch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.world import World

_ROUNDS = 7


def main() -> None:
    """Measure and print."""
    network, size = sys.argv[1], int(sys.argv[2])
    keep_freed_memory()
    precision = chosen_precision(torch.device("cpu"))
    config = configure(
        "benchmark",
        **{"name": network, "precision": precision, "augment": False},
        **{"fraction": FRACTION, "steps": STEPS, "eps": EPS},
    )
    device = torch.device("cpu")
    components = TrainingComponents.create(config, STAMP, SKY, device, Timers(device))
    images, ebv, z = galaxies(size, seed=3)
    number = torch.arange(size)
    batch = Batch(images, z, ebv, number, torch.tensor(SKY).expand(size, -1), number, size, 0)
    generate = components.step_attack()
    rank_batch = make_rank_batch(batch, config, 0, 0)
    adv = generate(rank_batch)
    step = components.build_step(SerialOverlap(lambda rank_batch: adv), RankRole(World()))
    times = in_turn(
        {"attack alone": lambda: generate(rank_batch), "training alone": lambda: step(rank_batch)}, _ROUNDS
    )
    print(json.dumps({name: spread(values)["median"] for name, values in times.items()}))


if __name__ == "__main__":
    main()
