"""Galaxies and networks for benchmarks of attacks, made in seconds with torch alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import bins_of, build

STAMP, BATCH = 64, 64
SKY = (0.05, 0.02, 0.03, 0.04, 0.2)  # nMgy a pixel, u g r i z of SDSS


def galaxies(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, 5, 64, 64) nMgy, E(B-V) and redshifts (n,): discs that redden with redshift, and noise."""
    g = torch.Generator().manual_seed(seed)
    z, ebv = 0.02 + 0.36 * torch.rand(n, generator=g), 0.1 * torch.rand(n, generator=g)
    y, x = torch.meshgrid(*(torch.arange(float(STAMP)) - (STAMP - 1) / 2,) * 2, indexing="ij")
    tilt, turn = 0.3 + 0.7 * torch.rand(n, 1, 1, generator=g), torch.pi * torch.rand(n, 1, 1, generator=g)
    along, across = x * turn.cos() + y * turn.sin(), (y * turn.cos() - x * turn.sin()) / tilt
    size = 1.5 + 2.5 * torch.rand(n, 1, 1, generator=g)
    disc = torch.exp(-torch.sqrt(along**2 + across**2 + 0.5) / size)
    bright = torch.exp(2 * torch.rand(n, 1, generator=g)) * (1.2 - z[:, None])
    colours = (0.1 + 3 * z[:, None]) ** torch.linspace(1.2, 0, 5) * torch.exp(
        0.1 * torch.randn(n, 5, generator=g)
    )
    noise = torch.tensor(SKY)[:, None, None] * torch.randn(n, 5, STAMP, STAMP, generator=g)
    return (bright * colours)[:, :, None, None] * disc[:, None] + noise, ebv, z


def configuration(network: str) -> Config:
    """The `model` section of a network by name, with 180 bins on [0, 0.4)."""
    return configure("benchmark", name=network)


def trained(network: str, steps: int, device: torch.device) -> tuple[nn.Module, RedshiftBins]:
    """Train a network for a few steps on clean galaxies: attacks on an untrained network mean little."""
    config = configuration(network)
    torch.manual_seed(0)
    model = build(config.model, stamp=STAMP, scale=tuple(10 * s for s in SKY))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bins, optimiser = bins_of(config.model), torch.optim.AdamW(model.parameters(), lr=5e-4)
    images, ebv, z = (t.to(device) for t in galaxies(min(steps * BATCH, 4096), seed=1))
    for step in range(steps):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH, device=device) % len(z)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(images[rows], ebv[rows])
        distance = (bins.centres(device) - z[rows, None]) / (4 * bins.width)
        loss = functional.cross_entropy(logits.float(), torch.softmax(-0.5 * distance**2, dim=1))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return model.eval(), bins
