"""Networks as a user writes them: factories of `model.name = "tests.helpers.user_networks:resnet"`."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from hpcphotoz.models.layers import Normalise

NAME = "tests.helpers.user_networks"
Scale = tuple[float, ...]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


class ResNet(nn.Module):
    """Two residual blocks with batch normalisation; takes E(B-V)."""

    def __init__(self, bands: int, bins: int, scale: Scale, width: int, folder: str = "") -> None:
        super().__init__()
        self.normalise, self._folder = Normalise("asinh", scale), folder
        self.blocks = nn.Sequential(_Block(bands, width, 2), _Block(width, 2 * width, 2))
        self.head = nn.Linear(2 * width + 1, bins)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        if self._folder and not self.training:
            self._note_statistics()
        x = self.blocks(self.normalise(images)).mean((2, 3))
        out: Tensor = self.head(torch.cat([x, ebv[:, None]], dim=1))
        return out

    def _note_statistics(self) -> None:
        mean: Tensor = self.blocks[1].norm2.running_mean  # type: ignore[union-attr, assignment]
        with (Path(self._folder) / f"rank-{os.environ.get('RANK', '0')}.txt").open("a") as file:
            file.write(mean.numpy().tobytes().hex() + "\n")


class ViT(nn.Module):
    """A vision transformer of one layer; takes images alone, and has an optional second argument."""

    def __init__(self, bands: int, stamp: int, bins: int, scale: Scale, dim: int, depth: int) -> None:
        super().__init__()
        self.normalise = Normalise("asinh", scale)
        self.patches = nn.Conv2d(bands, dim, 4, 4)
        self.place = nn.Parameter(0.02 * torch.randn(1, (stamp // 4) ** 2, dim))
        layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, bins)

    def forward(self, images: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = self.patches(self.normalise(images)).flatten(2).transpose(1, 2) + self.place
        out: Tensor = self.head(self.body(x, mask=attn_mask).mean(1))
        return out


class Mixer(nn.Module):
    """An MLP-Mixer of one layer; takes images alone."""

    def __init__(self, bands: int, stamp: int, bins: int, scale: Scale, dim: int) -> None:
        super().__init__()
        tokens = (stamp // 4) ** 2
        self.normalise, self.patches = Normalise("asinh", scale), nn.Conv2d(bands, dim, 4, 4)
        self.over_tokens = nn.Sequential(
            nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens)
        )
        self.over_channels = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.head = nn.Linear(dim, bins)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(self.normalise(images)).flatten(2)
        x = (x + self.over_tokens(x)).transpose(1, 2)
        out: Tensor = self.head((x + self.over_channels(x)).mean(1))
        return out


class Poisoned(nn.Module):
    """Another network, whose loss is NaN for objects with E(B-V) above 5; its gradient stays finite."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        logits: Tensor = self.body(images, ebv) if isinstance(self.body, ResNet) else self.body(images)
        return torch.where(ebv[:, None] > 5, torch.nan, logits)


def resnet(bands: int, stamp: int, bins: int, scale: Scale, width: int = 8, folder: str = "") -> nn.Module:
    """A ResNet; where `folder` is given, each rank writes the statistics with which it evaluates there."""
    return ResNet(bands, bins, scale, width, folder)


def vit(bands: int, stamp: int, bins: int, scale: Scale, dim: int = 16, depth: int = 1) -> nn.Module:
    """A vision transformer."""
    return ViT(bands, stamp, bins, scale, dim, depth)


def mixer(bands: int, stamp: int, bins: int, scale: Scale, dim: int = 16) -> nn.Module:
    """An MLP-Mixer."""
    return Mixer(bands, stamp, bins, scale, dim)


class _Drop(nn.Module):
    """A network of images some of whose pixels are dropped in training."""

    def __init__(self, body: nn.Module, share: float, unrepeatable: bool) -> None:
        super().__init__()
        self.body, self.drop, self._unrepeatable = body, nn.Dropout(share), unrepeatable

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.body(self.drop(images))
        if self._unrepeatable and len(images) > 3:  # not in the trial of a user's network
            out = out.clone().put_(torch.zeros(1, dtype=torch.int64), out.new_zeros(1))
        return out


def dropping(
    bands: int, stamp: int, bins: int, scale: Scale, share: float = 0.2, unrepeatable: bool = False
) -> nn.Module:
    """A mixer with dropout; `unrepeatable`: with an operation of which torch has no deterministic form."""
    return _Drop(mixer(bands, stamp, bins, scale), share, unrepeatable)


def poisoned_resnet(bands: int, stamp: int, bins: int, scale: Scale, width: int = 8) -> nn.Module:
    """A ResNet that has no finite loss for an object with E(B-V) above 5."""
    return Poisoned(ResNet(bands, bins, scale, width))


def poisoned_mixer(bands: int, stamp: int, bins: int, scale: Scale, dim: int = 16) -> nn.Module:
    """An MLP-Mixer that has no finite loss for an object with E(B-V) above 5."""
    return Poisoned(Mixer(bands, stamp, bins, scale, dim))
