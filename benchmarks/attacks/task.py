"""Networks and galaxies on which attacks are compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.driver import describe_network
from benchmarks.training.galaxies import SKY, STAMP, configuration, galaxies, trained
from hpcphotoz import attacks
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.evaluation.batches import read_batches, to_tensors
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.run.network import load_network

EPS, STEPS = 0.1, 10  # sky sigma
OBJECTS = {"compact": 256, "cnn": 64, "inception": 32}  # on a CPU; 8 times as many on a GPU
TRAINING = {"compact": 60, "cnn": 120, "inception": 60}  # steps
FARTHEST = 1.01  # epsilon: what pixels of the peers, on [0, 1], may be off by rounding
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Task:
    """A network and the objects on which it is attacked."""

    name: str
    spec: dict[str, Any]  # from which a peer builds the network
    model: nn.Module
    bins: RedshiftBins
    images: Tensor
    ebv: Tensor
    z: Tensor
    eps: Tensor  # (B,) nMgy

    def first(self, n: int) -> "Task":
        """The task with its first n objects."""
        return replace(self, images=self.images[:n], ebv=self.ebv[:n], z=self.z[:n])

    def attack(self, **options: Any) -> Callable[[], Tensor]:
        """Our PGD as a callable."""
        loss = attacks.cross_entropy(self.bins)
        if options.pop("graph", False):
            graph = attacks.PGD(self.model, self.eps, steps=STEPS, loss=loss, graph=True, **options)
            return lambda: graph(self.images, self.z, self.ebv)
        start = attacks.RandomStart(torch.arange(len(self.z), device=DEVICE), seed=0)
        return lambda: attacks.pgd(
            self.model,
            self.images,
            self.ebv,
            self.z,
            self.eps,
            loss=loss,
            steps=STEPS,
            start=start,
            **options,
        )

    def attacked(self, images: Tensor) -> Tensor:
        """The images themselves; raises ValueError where they are not in the ball, up to rounding."""
        away = (images.to(DEVICE) - self.images).abs() / self.eps[:, None, None]
        if not (worst := float(away.max())) <= FARTHEST:
            raise ValueError(f"attacked images are {worst:.4g} epsilon away: outside the ball")
        return images

    @torch.no_grad()
    def judge(self, images: Tensor) -> dict[str, float]:
        """Mean cross-entropy and fraction of outliers of attacked images, in float32."""
        parts = zip(*(torch.split(t, 32) for t in (images.to(DEVICE), self.ebv)), strict=True)
        logits = torch.cat([self.model(x, e) for x, e in parts])
        away = (self.bins.mean(logits) - self.z).abs() / (1 + self.z)
        loss = functional.cross_entropy(logits, self.bins.index(self.z))
        return {"loss": float(loss), "eta": float((away > 0.05).float().mean())}


def make_task(name: str, part: int = 1) -> Task:
    """Train a network for a few steps, and draw galaxies that it has not seen.

    Args:
        name: of the network.
        part: divides the number of training steps and of objects.
    """
    start, steps = time.perf_counter(), TRAINING[name] // part
    model, bins = trained(name, steps, DEVICE)
    print(f"{name}: trained {steps} steps in {time.perf_counter() - start:.0f} s", flush=True)
    objects = OBJECTS[name] * (8 if DEVICE.type == "cuda" else 1) // part
    images, ebv, z = (t.to(DEVICE) for t in galaxies(objects, seed=2))
    spec = describe_network(configuration(name).model, STAMP, [10 * s for s in SKY])
    return Task(name, spec, model, bins, images, ebv, z, EPS * torch.tensor(SKY, device=DEVICE))


def task_of_run(run: Path, data: Path) -> Task:
    """A trained run and the first galaxies of a dataset."""
    network, manifest = load_network(run, DEVICE), read_manifest(data)
    found = to_tensors(next(iter(read_batches(data, manifest, 256, "reading"))), DEVICE)
    scale = network.module.state_dict()["normalise.scale"].flatten().tolist()
    spec = describe_network(network.config.model, network.stamp, scale)
    eps = 0.05 * found["sky_sigma"].mean(0)  # where about half of a standard network's galaxies still hold
    return Task(
        "run", spec, network.module, network.bins, found["images"], found["ebv"], found["z_spec"], eps
    )
