"""Networks with images and labels that tests of attacks share, and the tolerance of a ball's radius."""

import torch
from torch import Tensor, nn

from tests.helpers.networks import BatchNormNetwork, ConvNetwork


def batch_norm_problem(n: int = 6) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A network of images and E(B-V), images (n, 3, 8, 8), E(B-V), redshifts and an epsilon per band."""
    torch.manual_seed(3)
    images, ebv, z = torch.randn(n, 3, 8, 8), 0.05 * torch.rand(n), 0.39 * torch.rand(n)
    return BatchNormNetwork(), images, ebv, z, torch.tensor([0.01, 0.05, 0.2])


def conv_problem(n: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of images alone, images (n, 3, 8, 8) and redshifts."""
    model = ConvNetwork()  # sets torch's seed
    return model, torch.randn(n, 3, 8, 8), 0.39 * torch.rand(n)


def rounding(images: Tensor, eps: Tensor) -> Tensor:
    """How far |adv - images| may exceed eps: x0 + eps is rounded once, and so is the difference."""
    return 2.0**-23 * (images.abs() + eps)
