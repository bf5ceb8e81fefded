"""The exponential moving average (EMA) of a network's weights, which is what is used of the network.

Training itself, its attacks included, uses the last weights. The average is validated, and it is what
`load_network` gives: for evaluation, prediction, attacks and exports.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def ema_decay(step: int, decay: float) -> float:
    """Decay of the update after a step, counted from 0: min(decay, (1 + step) / (10 + step)).

    At first the average forgets quickly, so that the initial weights do not stay in it; the warm-up is that
    of TensorFlow's ExponentialMovingAverage.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """Average of all floating-point tensors in a network's state dict: a <- d a + (1 - d) weights.

    Running statistics of normalisation layers are averaged as the weights are, because they belong to them.
    What is not floating-point, such as a number of batches, is that of the network.

    Args:
        module: the network; its tensors must stay where they are, as they do while it is trained.
        decay: d, after its warm-up; see `ema_decay`.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        found = {name: tensor for name, tensor in module.state_dict().items() if _averages(tensor)}
        self._names, self._last = list(found), list(found.values())
        self._average = [tensor.clone() for tensor in self._last]

    @torch.no_grad()
    def update(self, step: int, where: Tensor | None = None) -> None:
        """Take in the weights after a step; the host does not wait for a GPU.

        Args:
            step: counted from 0.
            where: () bool, on the device of the weights: whether to; None: yes.
        """
        part = 1 - ema_decay(step, self._decay)
        if where is None:
            torch._foreach_lerp_(self._average, self._last, part)
            return
        change = torch._foreach_sub(self._last, self._average)
        torch._foreach_mul_(change, where * part)
        torch._foreach_add_(self._average, change)

    def state_dict(self) -> dict[str, Any]:
        """The averaged network, with the names of the network's state dict."""
        return {**self._module.state_dict(), **dict(zip(self._names, self._average, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from an average that `state_dict` gave, or begin anew from weights."""
        for name, tensor in zip(self._names, self._average, strict=True):
            tensor.copy_(state[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network the averaged weights, in the same memory; at the end it has its own, to the bit.

        CUDA graphs and compiled code, which know the weights by their addresses, compute with them too.
        """
        own = [tensor.clone() for tensor in self._last]
        try:
            self._copy(self._average)
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._last, values)


def _averages(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
