"""Square attack: random search without gradients (Andriushchenko et al. 2020)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from hpcphotoz.attacks.ball import AttackBatch, Ball, RandomStart, attack_batch, in_layout_of
from hpcphotoz.attacks.losses import Condition, Loss, check_labels
from hpcphotoz.attacks.passes.gradient import AS_IS, ImageLoss, Model, Passes
from hpcphotoz.attacks.passes.runner import run_attack
from hpcphotoz.attacks.pgd import ALL_ROWS, BestSoFar
from hpcphotoz.config.attack import MAX_QUERIES
from hpcphotoz.kernels.attack.start_reference import uniform

# The fraction of the image that a square covers is halved after each of these ten-thousandths of the queries.
_HALVE_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    model: Model,
    images: Tensor,
    ebv: Tensor | None,
    z: Tensor,
    eps: Ball | Tensor,
    *,
    loss: Loss,
    queries: int = 1000,
    start: RandomStart | None = None,
    p_init: float = 0.8,
    stop: Condition | None = None,
    passes: Passes = AS_IS,
) -> Tensor:
    """Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): black-box, so it sees no masked gradient.

    The first query is an image with vertical stripes of +eps or -eps, of a random sign per band and column.
    Each further one sets a square at a random place to +eps or -eps, of a random sign per band, and is kept
    where the loss of the object rises. Squares become smaller on the schedule of AutoAttack. Unlike there, a
    square may touch the last row and column, and a draw that changes nothing is not repeated.

    Args:
        model, images, ebv, z, loss: as `pgd`; the loss needs no gradient.
        eps: the ball, an L-infinity one.
        queries: forward passes; one more computes the loss of the clean images.
        start: key of the random numbers, (seed, epoch, object); default: positions in the batch, seed 0.
        p_init: fraction of the pixels that the first squares cover.
        stop: condition at which an object is finished; its passes are still computed.
        passes: as `pgd`, but no CUDA graph is made.

    Returns:
        The images of greatest loss, the clean ones included, (N, B, H, W) float32, within the ball up to one
        rounding.

    Raises:
        ValueError: shapes, types or options that do not belong together, another ball, or redshifts that are
            NaN or outside the bins of the loss.
    """
    if not 1 <= queries <= MAX_QUERIES:
        raise ValueError(f"queries {queries}: must be 1 to {MAX_QUERIES}")
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init {p_init}: must be above 0 and at most 1")
    start = start or RandomStart()
    batch = attack_batch(images, ebv, z, eps, None, 1.0, start.object_id)
    if batch.ball != "linf":
        raise ValueError(f"ball '{batch.ball}': the square attack knows linf alone")
    check_labels(loss, batch.labels)
    loop = partial(square_loop, queries=queries, p_init=p_init, stop=stop)
    # One graph of thousands of forward passes would take more memory than it saves time.
    return run_attack(model, batch, loss, loop, start, replace(passes, replay=None))[0]


def square_loop(
    image_loss: ImageLoss,
    batch: AttackBatch,
    key: Tensor | None,
    *,
    queries: int,
    p_init: float = 0.8,
    stop: Condition | None = None,
) -> tuple[Tensor]:
    """The loop of the square attack for `run_attack`; options as `square`."""
    assert key is not None
    best = BestSoFar(batch, stop)
    bands, height, width = batch.images.shape[1:]

    def ask(adv: Tensor) -> None:
        best.add(ALL_ROWS, adv, *image_loss.value(adv, batch), batch.labels)

    def at_edge(signs: Tensor, where: Tensor) -> Tensor:
        # The images kept so far, with x0 + sign eps in some pixels, inside the bounds.
        edge = batch.images + signs * batch.eps[:, :, None, None]
        inside = where if batch.mask is None else where & batch.mask
        mixed = torch.where(inside, edge, best.images)
        return batch.advance(in_layout_of(mixed, batch.images), None)

    ask(batch.images)
    columns = uniform(torch.Size((len(batch), bands, 1, width)), batch.object_id, key)
    # The clean images where an object's loss fell: squares then start from there.
    ask(at_edge(_sign(columns), torch.ones_like(columns[:1, :1, :1, :1], dtype=torch.bool)))
    for query, numbers in enumerate(numbers_of_queries(batch, key, queries - 1, 2 + bands), start=1):
        side = square_side(query, queries, p_init, height, width)
        where = _within(numbers[:, 0], side, height)[:, None, :, None]
        where = where & _within(numbers[:, 1], side, width)[:, None, None, :]
        ask(at_edge(_sign(numbers[:, 2:])[:, :, None, None], where))
    return (best.images,)


def square_side(query: int, queries: int, p_init: float, height: int, width: int) -> int:
    """Side of the square of a query, in pixels: that of a fraction p_init / 2^k of the image, at least 1."""
    halvings: int = sum(int(query / queries * 10_000) > after for after in _HALVE_AFTER)
    side = math.sqrt(p_init / 2**halvings * height * width)
    return min(max(round(side), 1), height, width)


def numbers_of_queries(
    batch: AttackBatch, key: Tensor, queries: int, count: int, block: int = 1024
) -> Iterator[Tensor]:
    """For each query, (N, count) uniform numbers on [-1, 1): of the object and query, not of the batch.

    Args:
        batch: the objects.
        key: (2,) int64, (seed, epoch).
        queries: how many.
        count: numbers of each query.
        block: queries whose numbers are computed together.
    """
    for first in range(0, queries, block):
        # Epochs lie below 2^20; the numbers of the stripes are those of block 0.
        own = torch.stack([key[0], key[1] + ((first // block + 1) << 20)])
        shape = torch.Size((len(batch), min(block, queries - first), count))
        yield from uniform(shape, batch.object_id, own).unbind(1)


def _sign(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0, -1.0, 1.0)


def _within(number: Tensor, side: int, length: int) -> Tensor:
    """(N, length) bool: the interval of `side` pixels that a number on [-1, 1) chooses."""
    first = (0.5 * (number + 1) * (length - side + 1)).floor().clamp(max=length - side)[:, None]
    at = torch.arange(length, device=number.device)
    return (at >= first) & (at < first + side)
