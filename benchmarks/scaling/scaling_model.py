"""How the time of an adversarial training step grows with the number of ranks: pure functions.

    step = (compute + update) (1 + straggling) + exposed part of the all-reduce + agreement

Compute is 3 passes (forward, input gradient, weight gradient) over a rank's batch and 2 K over the attacked
fraction f: the cost law 1 + 2 K f / 3, except for batches so small that a pass takes its minimal time.
The attack multiplies compute and not the all-reduce, which only the training's own backward pass hides. The
model leaves out reading (data_wait is measured), validation, checkpoints, failures, and other jobs' traffic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

AGREEMENT_BYTES = 56  # seven float64 a step: losses, numbers, requests to stop


class Quantity(NamedTuple):
    """A number on which a prediction depends, with its unit and source."""

    value: float
    unit: str
    source: str  # "measured: ...", "counted: ..." or "assumed: ..."


class Attack(NamedTuple):
    """PGD with that many steps on that fraction of every batch."""

    steps: int
    fraction: float


class Point(NamedTuple):
    """The median time of one all-reduce."""

    ranks: int
    size: int  # bytes
    seconds: float


@dataclass(frozen=True)
class Assumptions:
    """Speed of one rank on one network, and of the rings inside nodes and between them."""

    image: Quantity  # s/image, clean step at full load
    floor: Quantity  # s, the minimal time of one pass
    update: Quantity  # s/step, the optimiser, whatever the batch
    gradients: Quantity  # bytes
    bucket: Quantity  # bytes that are reduced together
    overlap: Quantity  # fraction of the training's backward pass that can hide the all-reduce
    jitter: Quantity  # standard deviation of a rank's step over the step
    node: Quantity  # ranks a node; 1: one flat ring of all ranks
    alpha_inside: Quantity  # s/hop
    beta_inside: Quantity  # s/byte
    alpha: Quantity  # s/hop, between nodes
    beta: Quantity  # s/byte, between nodes
    trees: Quantity  # 1: between nodes the quicker of ring and double binary tree; 0: the ring


def ring_s(ranks: int, size: float, alpha: float, beta: float) -> float:
    """All-reduce of `size` bytes by a ring, seconds: 2 (p - 1) alpha + 2 (p - 1) / p n beta."""
    return 2 * (ranks - 1) * (alpha + size / ranks * beta)


def allreduce_s(a: Assumptions, ranks: int, size: float) -> float:
    """All-reduce of `size` bytes, seconds: inside nodes, then between nodes of each rank's part."""
    near = min(ranks, int(a.node.value))
    nodes, part = math.ceil(ranks / near), size / near
    far = ring_s(nodes, part, a.alpha.value, a.beta.value)
    if a.trees.value:
        far = min(far, 2 * math.ceil(math.log2(nodes)) * a.alpha.value + 2 * part * a.beta.value)
    return ring_s(near, size, a.alpha_inside.value, a.beta_inside.value) + far


def gradients_s(a: Assumptions, ranks: int) -> float:
    """All-reduce of all gradients, bucket after bucket, seconds."""
    buckets = math.ceil(a.gradients.value / a.bucket.value)
    return buckets * allreduce_s(a, ranks, a.gradients.value / buckets)


def compute_s(a: Assumptions, batch: float, attack: Attack) -> float:
    """Passes over a rank's `batch` images and the attack's over its share, seconds."""

    def one_pass(images: float) -> float:
        return max(images * a.image.value / 3, a.floor.value) if images else 0.0

    return 3 * one_pass(batch) + 2 * attack.steps * one_pass(attack.fraction * batch)


def exposed_s(a: Assumptions, ranks: int, batch: float) -> float:
    """Seconds of the all-reduce that the backward pass (2 of 3 passes) does not hide: at least one bucket."""
    whole = gradients_s(a, ranks)
    hidden = a.overlap.value * compute_s(a, batch, Attack(0, 0)) * 2 / 3
    return max(whole / math.ceil(a.gradients.value / a.bucket.value), whole - hidden)


def step_s(a: Assumptions, ranks: int, batch: float, attack: Attack) -> float:
    """One optimisation step of `ranks` with `batch` images each, seconds.

    The slowest of p ranks whose times scatter normally is late by about sigma sqrt(2 ln p).
    """
    straggling = a.jitter.value * math.sqrt(2 * math.log(ranks))
    alone = compute_s(a, batch, attack) + a.update.value
    return alone * (1 + straggling) + exposed_s(a, ranks, batch) + allreduce_s(a, ranks, AGREEMENT_BYTES)


def weak(a: Assumptions, ranks: int, batch: float, attack: Attack) -> float:
    """Efficiency against one rank, every rank with `batch` images: rate over `ranks` times that of one."""
    return step_s(a, 1, batch, attack) / step_s(a, ranks, batch, attack)


def strong(a: Assumptions, ranks: int, batch: float, attack: Attack) -> float:
    """Efficiency against one rank, `batch` images shared by all."""
    return step_s(a, 1, batch, attack) / (ranks * step_s(a, ranks, batch / ranks, attack))


def fit_ring(points: Sequence[Point]) -> tuple[float, float]:
    """alpha (s) and beta (s/byte), not negative, that fit measured times with the smallest relative error.

    Raises:
        ValueError: fewer than two different sizes.
    """
    if len({point.size for point in points}) < 2:
        raise ValueError(f"{len(points)} points of one size or none: alpha and beta need two sizes")
    design = np.array([(ring_s(p, n, 1, 0) / t, ring_s(p, n, 0, 1) / t) for p, n, t in points])
    best = np.linalg.lstsq(design, np.ones(len(points)), rcond=None)[0]
    if best.min() < 0:
        alone = np.diag(design.sum(0) / (design**2).sum(0))
        best = min(alone, key=lambda x: float(((design @ x - 1) ** 2).sum()))
    return float(best[0]), float(best[1])


def fit_step(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Seconds per image and constant seconds, from (images, seconds) of two steps of one rank.

    Neither is negative: if noise makes one negative, all time of the larger batch counts per image.
    """
    (n, t), (m, u) = small, large
    image = (u - t) / (m - n)
    return (image, u - m * image) if 0 < image <= u / m else (u / m, 0.0)
