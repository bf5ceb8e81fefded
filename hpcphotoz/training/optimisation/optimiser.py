"""The optimiser that a configuration describes."""

from collections.abc import Iterable

import torch
from torch import nn

from hpcphotoz.config import Optimiser


def make_optimiser(
    options: Optimiser, parameters: Iterable[nn.Parameter], fused: bool
) -> torch.optim.Optimizer:
    """Adam, AdamW or stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013).

    Args:
        options: algorithm, peak learning rate, momentum, weight decay.
        parameters: of the network; those without a gradient, which are frozen, stay as they are.
        fused: update all parameters in one kernel; results differ by rounding.
    """
    rate, decay = options.learning_rate, options.weight_decay
    if options.algorithm == "sgd":
        momentum = options.momentum
        return torch.optim.SGD(
            parameters, lr=rate, momentum=momentum, nesterov=momentum > 0, weight_decay=decay, fused=fused
        )
    kind = torch.optim.Adam if options.algorithm == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)
