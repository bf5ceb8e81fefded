"""The same networks computed in a form that suits matrix units."""

from torch import nn

from hpcphotoz.models.cnn import CompactCNN, SmallCNN
from hpcphotoz.models.inception import Inception, InceptionModule
from hpcphotoz.models.padded import Convolution, Dense


def reform(module: nn.Module, *, merged: bool, padded: bool) -> nn.Module:
    """Choose in place how a network of this package is computed; what it computes and its parameters stay.

    The other weights are formed from the parameters in every forward pass, and gradients go back through
    that: names and shapes, the optimiser's state and checkpoints are those of the plain network, which
    `reform(module, merged=False, padded=False)` brings back. Results differ by the order of sums.

    Args:
        module: Inception, SmallCNN or CompactCNN, also inside a wrapper (DDP, torch.compile).
        merged: the 1x1 convolutions of an inception module that share their input as one; the other networks
            have none, and it does nothing.
        padded: bands, channels, features and bins padded with zeros to multiples of 8.

    Returns:
        `module`.

    Raises:
        ValueError: another form is asked for, and there is no network of this package in `module`.
    """
    networks = [part for part in module.modules() if isinstance(part, (Inception, SmallCNN, CompactCNN))]
    if not networks and (merged or padded):
        raise ValueError(
            f"{type(module).__name__} holds no network that can be computed in another form: "
            "merged and padded are for Inception, SmallCNN and CompactCNN; leave them out for others"
        )
    for layer in (layer for network in networks for layer in network.modules()):
        if isinstance(layer, InceptionModule):
            layer.merged = merged
        elif isinstance(layer, (Convolution, Dense)):
            layer.padded = padded
    return module
