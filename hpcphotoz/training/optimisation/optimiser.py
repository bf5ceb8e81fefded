"""The optimiser that a configuration describes; Muon, which torch has for matrices alone.

Muon orthogonalises the momentum of convolutions. Seen as a matrix (outputs, inputs x kernel), a momentum has
few large singular values; Muon steps along the nearest matrix whose singular values are all about 1, so that
rare directions are learned as quickly as common ones (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon). A step has the usual size of one of AdamW, so that both share a
learning rate (Liu et al. 2025, arXiv:2502.16982). Dense layers stay with AdamW: the products below would take
longer than the passes of a batch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hpcphotoz.config import Optimiser

# The quintic of Jordan et al.: five iterations bring singular values from 0.003 to 1 into 0.7 to 1.2.
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_SIZE = 0.2  # root mean square of a step, in learning rates


def make_optimiser(
    options: Optimiser, parameters: Iterable[nn.Parameter], fused: bool
) -> torch.optim.Optimizer:
    """Adam, AdamW, Muon, or stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013).

    Args:
        options: algorithm, peak learning rate, momentum, weight decay.
        parameters: of the network; those without a gradient, which are frozen, stay as they are.
        fused: update all parameters in one kernel; results differ by rounding.
    """
    rate, decay, momentum = options.learning_rate, options.weight_decay, options.momentum
    if options.algorithm == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=momentum, nesterov=momentum > 0, weight_decay=decay, fused=fused
        )
    if options.algorithm == "muon":
        return Muon(parameters, rate, momentum, decay, fused)
    kind = torch.optim.Adam if options.algorithm == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)


class Muon(torch.optim.AdamW):
    """AdamW whose steps for parameters of four dimensions, the weights of convolutions, are those of Muon.

    Args:
        parameters: of the network.
        rate: learning rate of all parameters.
        momentum: Nesterov momentum of the convolutions.
        decay: decoupled weight decay of all parameters.
        fused: update the parameters of AdamW in one kernel.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, momentum: float, decay: float, fused: bool
    ) -> None:
        given = list(parameters)
        dense: dict[str, Any] = {"params": [p for p in given if p.ndim != 4], "orthogonal": False}
        convolutions: dict[str, Any] = {"params": [p for p in given if p.ndim == 4], "orthogonal": True}
        groups = [{**group, "momentum": momentum} for group in (dense, convolutions) if group["params"]]
        super().__init__(groups, lr=rate, weight_decay=decay, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; where `found_inf` is above 0, none, and no state."""
        done: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if (gradient := parameter.grad) is not None:
                    self._update(parameter, gradient, group)
                    done.append((parameter, gradient))
                    parameter.grad = None  # AdamW passes over it
        result: float | None = super().step(closure)
        for parameter, gradient in done:
            parameter.grad = gradient
        return result

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, rate, momentum = self.state[parameter], group["lr"], group["momentum"]
        if not state:
            # AdamW wants to find a `step` of every parameter when a checkpoint is loaded.
            state["step"] = torch.zeros((), device=parameter.device)
            state["momentum_buffer"] = torch.zeros_like(parameter)
        total = momentum * state["momentum_buffer"] + gradient
        along = orthogonalised((gradient + momentum * total).flatten(1)).view(parameter.shape)
        length = _SIZE * max(parameter.shape[0], parameter[0].numel()) ** 0.5
        updated = (1 - rate * group["weight_decay"]) * parameter - rate * length * along
        skip: Tensor | None = getattr(self, "found_inf", None)
        if skip is not None:  # on the device: the host must not wait for it (see `GuardedUpdate`)
            total = torch.where(skip > 0, state["momentum_buffer"], total)
            updated = torch.where(skip > 0, parameter, updated)
        state["momentum_buffer"].copy_(total)
        parameter.copy_(updated)


def never_updated(optimiser: torch.optim.Optimizer) -> bool | None:
    """Whether all updates so far were left out; None: unknown, as the optimiser keeps no state.

    An update leaves its number or a moment in the state, also in one that was loaded from a checkpoint. On a
    GPU it is read from the device.
    """
    if isinstance(optimiser, torch.optim.SGD) and not optimiser.defaults["momentum"]:
        return None
    kept = (value for state in optimiser.state.values() for value in state.values())
    return not any(bool(value.any()) for value in kept if isinstance(value, Tensor))


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix (m, n) with singular values of about 1: nearly U V^T for U S V^T; zeros stay zeros.

    Newton-Schulz iterations X <- P X with P = a + b X X^T + c (X X^T)^2, from X of norm 1. All P commute with
    X X^T, so that they are multiplied with one another, and with the larger matrix once.
    """
    a, b, c = _QUINTIC
    x: Tensor = matrix / (torch.linalg.vector_norm(matrix) + 1e-20)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    gram = x @ x.T
    product = one = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(_ITERATIONS):
        factor = a * one + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    x = product @ x
    return x.T if tall else x
