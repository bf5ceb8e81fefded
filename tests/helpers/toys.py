"""Linear networks and a dataset for them, on which an attack does what can be written down."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.models.bins import RedshiftBins

BANDS = ("g", "r", "i")
BINS = RedshiftBins(2, 0.0, 0.4)
SIDE = 8


class Linear(nn.Module):
    """Logits (0, w . x + b): the mean redshift is 0.1 + 0.2 sigmoid(w . x + b)."""

    def __init__(self, scale: float = 0.02, seed: int = 0) -> None:
        super().__init__()
        draw = torch.randn(len(BANDS), SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        self.w = nn.Parameter(scale * draw)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        logit = (images * self.w).sum(dim=(1, 2, 3)) + 0 * ebv
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


@dataclass(frozen=True)
class Toy:
    """The least that evaluation asks of a network."""

    name: str = "standard"
    module: nn.Module = field(default_factory=Linear)
    bins: RedshiftBins = BINS
    bands: tuple[str, ...] = BANDS
    stamp: int = SIDE
    step: int = 3


def stamps(n: int = 50, unknown: int = 0) -> Stamps:
    rng = np.random.default_rng(7)
    z = rng.uniform(0.01, 0.39, n).astype(np.float32)
    z[:unknown] = np.nan
    return Stamps(
        images=rng.normal(0, 1, (n, len(BANDS), SIDE, SIDE)).astype(np.float32),
        z_spec=z,
        ebv=np.zeros(n, np.float32),
        object_id=np.arange(100, 100 + n, dtype=np.int64),
        sky_sigma=rng.uniform(0.5, 2, (n, len(BANDS))).astype(np.float32),
        ra=np.zeros(n),
        dec=np.zeros(n),
    )


def write(folder: Path, content: Stamps, shard_rows: int = 16, storage: str = "float32") -> Path:
    with DatasetWriter(folder, Header(BANDS, SIDE, 0.396, storage), shard_rows, {"made": "here"}) as writer:
        writer.append(content)
    return folder


class Diverged(Linear):
    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        logits = super().forward(images, ebv)
        return logits / (images[:, 0, 0, 0] != images[-1, 0, 0, 0]).float()[:, None]


class Curved(nn.Module):
    """A small convolutional network with 20 bins."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh()
        )
        self.head = nn.Linear(72, 20)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(images).flatten(1)) + 0 * ebv[:, None]
        return out
