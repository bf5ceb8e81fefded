"""Training steps as the trainer puts them together, on one batch that stays in memory."""

from collections.abc import Callable

import torch

from benchmarks.galaxies import SKY, STAMP, galaxies
from hpcphotoz.attacks.precision import tf32
from hpcphotoz.config import Config
from hpcphotoz.data.stream import Batch
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.assembly import Assembly
from hpcphotoz.training.cast import Cast
from hpcphotoz.training.phases import Phases
from hpcphotoz.training.speed import speed_of
from hpcphotoz.training.work import Work, prepare
from hpcphotoz.world import World

LEARNING_RATE = 1e-5  # small: a benchmark's steps all see the same objects


def assembled(config: Config, size: int, device: torch.device) -> tuple[Callable[[], object], Assembly, Work]:
    """What takes a step of a run on one rank, the parts that it is made of, and the batch that it works on.

    Args:
        config: of the run.
        size: objects a step.
        device: where.
    """
    torch.manual_seed(0)
    bins, speed = bins_of(config.model), speed_of(config.training, device)
    module = speed.placed(build(config.model, stamp=STAMP, scale=tuple(10 * s for s in SKY)), device)
    optimiser = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=speed.fused_adam)
    images, ebv, z = (t.to(device) for t in galaxies(size, seed=1))
    number, sky = torch.arange(size), torch.tensor(SKY, device=device).expand(size, -1)
    work = prepare(Batch(images, z, ebv, number, sky, number, size, 0), config, epoch=0, step=0)
    parts = Assembly(module, optimiser, config, bins, speed, device, Phases(device))
    taker = parts.taker(parts.adversaries(), Cast(World()))

    def step() -> None:
        with tf32(speed.tf32):
            taker(work)

    return step, parts, work
