"""A redshift problem that a small network learns in a second, and networks that mask their gradients."""

import torch
from torch import Tensor, nn

from hpcphotoz.data.format.stamps import Stamps
from tests.helpers.datasets import noise_stamps
from tests.helpers.networks import BINS, ConvNetwork


def coloured_stamps(n: int) -> Stamps:
    """`noise_stamps` with a source of 4 x 4 pixels, whose colour is its redshift."""
    stamps = noise_stamps(n)
    for band, slope in enumerate((-1.0, 0.5, 1.0)):
        stamps.images[:, band, 2:6, 2:6] += (4 + 12 * slope * (stamps.z_spec - 0.2))[:, None, None]
    return stamps


def trained_network(seed: int = 0) -> nn.Module:
    """A small convolutional network trained on 512 coloured stamps."""
    network, stamps = ConvNetwork(), coloured_stamps(512)
    torch.manual_seed(seed)
    nn.init.normal_(network.head.weight, std=0.1)
    images, bins = torch.from_numpy(stamps.images), BINS.index(torch.from_numpy(stamps.z_spec))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(images), bins))
        optimiser.step()
    return network


class QuantisedInput(nn.Module):
    """Rounds pixels to half a unit: nearly everywhere, the gradient is zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        out: Tensor = self.network(torch.round(2 * images) / 2, ebv)
        return out


class SaturatedSoftmax(QuantisedInput):
    """Logits so far apart that float32 makes the PDF of every confident object a single bin."""

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        out: Tensor = self.network(images, ebv)
        return 1e4 * out


class ShatteredGradients(QuantisedInput):
    """Adds a ripple to each pixel, too small to matter and so steep that its gradient drowns all others."""

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        out: Tensor = self.network(images + 1e-3 * torch.sin(1e6 * images), ebv)
        return out
