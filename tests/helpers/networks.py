"""Small networks for images of 3 bands and 8 pixels, which tests attack, train and evaluate."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.layers import FluxNetwork, Normalise
from hpcphotoz.models.view import View
from tests.helpers.datasets import NOISE_BANDS, NOISE_SIDE

BINS = RedshiftBins(20, 0.0, 0.4)
TWO_BINS = RedshiftBins(2, 0.0, 0.4)
PIXELS = len(NOISE_BANDS) * NOISE_SIDE**2
VIEW = View(part=4, binning=2)  # of stamps of 8 pixels a side


class LogisticNetwork(nn.Module):
    """Logits (0, w . x) in two bins: the mean redshift is 0.1 + 0.2 sigmoid(w . x), so that attacks have
    analytic results."""

    def __init__(self, scale: float = 0.02, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(
            scale * torch.randn(len(NOISE_BANDS), NOISE_SIDE, NOISE_SIDE, generator=generator)
        )

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        logit = (images * self.w).sum(dim=(1, 2, 3)) + 0 * ebv
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


class CroppedNetwork(FluxNetwork):
    """A `LogisticNetwork` of the mean flux in squares of 2 x 2 of the central 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise("sqrt", (1.0, 1.0, 1.0), VIEW)
        self.seen = nn.Parameter(0.3 * torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1)))

    @property
    def w(self) -> Tensor:
        """The same function's weights of the pixels of a whole stamp."""
        edge = (NOISE_SIDE - VIEW.part) // 2
        spread = self.seen.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2) / 4
        return functional.pad(spread, (edge,) * 4)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        logit = (VIEW(images) * self.seen).sum(dim=(1, 2, 3)) + 0 * ebv
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


class NonFiniteNetwork(LogisticNetwork):
    """Divides by zero for the last object of a batch."""

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        logits = super().forward(images, ebv)
        return logits / (images[:, 0, 0, 0] != images[-1, 0, 0, 0]).float()[:, None]


class LinearNetwork(nn.Module):
    """20 logits linear in the pixels: the PDF of a flipped image differs."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(
            0.1 * torch.randn(len(NOISE_BANDS), NOISE_SIDE, NOISE_SIDE, BINS.n, generator=generator)
        )

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        return torch.einsum("nbyx,byxk->nk", images, self.w) + ebv[:, None]


class BatchNormNetwork(nn.Module):
    """20 logits from batch normalisation, dropout and a linear layer of images and E(B-V)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(PIXELS), nn.Dropout(0.5)
        self.head = nn.Linear(PIXELS + 1, BINS.n)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.drop(self.norm(images.flatten(1))), ebv[:, None]], 1))
        return out


class ConvNetwork(nn.Module):
    """20 logits from two convolutions, with the same weights each time; called with or without E(B-V)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh()
        )
        self.head = nn.Linear(72, BINS.n)

    def forward(self, images: Tensor, *ebv: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(images).flatten(1))
        return out + 0 * ebv[0][:, None] if ebv else out


@dataclass(frozen=True)
class StubNetwork:
    """A trained network with the members of `RedshiftNetwork` and no others."""

    name: str = "standard"
    module: nn.Module = field(default_factory=LogisticNetwork)
    bins: RedshiftBins = TWO_BINS
    bands: tuple[str, ...] = NOISE_BANDS
    stamp: int = NOISE_SIDE
    step: int = 3
