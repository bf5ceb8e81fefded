"""Small models and problems that the tests of attacks share."""

import torch
from torch import Tensor, nn

from hpcphotoz.models.bins import RedshiftBins

BINS = RedshiftBins(20, 0.0, 0.4)


class Linear(nn.Module):
    """A user's own network, with batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(3 * 64), nn.Dropout(0.5), nn.Linear(3 * 64 + 1, 20)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.drop(self.norm(images.flatten(1))), ebv[:, None]], 1))
        return out


class Curved(nn.Module):
    """A small convolutional network of images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh()
        )
        self.head = nn.Linear(8 * 9, 20)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(images).flatten(1))
        return out


def problem(n: int = 6) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A model, images (n, 3, 8, 8), E(B-V), redshifts and an epsilon per band."""
    torch.manual_seed(3)
    images, ebv, z = torch.randn(n, 3, 8, 8), 0.05 * torch.rand(n), 0.39 * torch.rand(n)
    return Linear(), images, ebv, z, torch.tensor([0.01, 0.05, 0.2])


def curved(n: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """A curved model of images alone, images and redshifts."""
    torch.manual_seed(4)
    return Curved(), torch.randn(n, 3, 8, 8), 0.39 * torch.rand(n)


def slack(images: Tensor, eps: Tensor) -> Tensor:
    """Of an assertion that |adv - images| <= eps: x0 + eps is rounded once, and so is the difference."""
    return 2.0**-23 * (images.abs() + eps)
