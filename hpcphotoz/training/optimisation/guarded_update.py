"""The update of the weights: gradients are clipped, and an update that is not finite is left out.

A loss that is not finite gives gradients that are not (`loss_scale`). After the average over the learners all
of them have the same gradients, and so the same norm: each decides alone whether to update, and all decide
alike. Nothing is sent for it.

A CPU reads the norm. On a GPU the host must not wait for it: the fused optimisers take a flag on the device,
`found_inf`, which torch's GradScaler also uses, and then change neither weights nor their own state.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hpcphotoz.compute.statistics import BufferCopy


class GuardedUpdate:
    """Updates the weights, unless the norm of their gradients is not finite.

    Where it is not, weights, state of the optimiser and buffers of the network, such as the running
    statistics of batch normalisation, are as before the update, to the bit.

    Args:
        module: the network.
        optimiser: of its parameters.
        clip_norm: greatest norm of the gradients, over all parameters; 0: they are not clipped.
        host_reads: whether the host waits for the norm; None: on a CPU, and for an optimiser that is not
            fused.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        clip_norm: float,
        host_reads: bool | None = None,
    ) -> None:
        self._optimiser, self._clip_norm = optimiser, clip_norm
        self._parameters = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
        if host_reads is None:
            fused = all(group.get("fused") for group in optimiser.param_groups)
            host_reads = self._parameters[0].device.type == "cpu" or not fused
        self._host_reads, self._buffers = host_reads, BufferCopy(module)

    def begin(self) -> None:
        """Copy the buffers; called before the passes of an update."""
        self._buffers.save()

    def update(self) -> Tensor:
        """Clip and update, or leave the update out.

        Returns:
            () float32: Euclidean norm of the gradients of all parameters before they are clipped. Above 2e19
            it overflows, and so would the second moments of Adam: the update is left out.
        """
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if self._clip_norm:
            clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        if not self._host_reads:
            self._update_on_device(~norm.isfinite())
        elif norm.isfinite():
            self._optimiser.step()
        else:
            self._buffers.restore()
        return norm

    def _update_on_device(self, skip: Tensor) -> None:
        if isinstance(self._optimiser, torch.optim.SGD):
            self._make_momenta()
        self._optimiser.found_inf = skip.float()  # type: ignore[attr-defined]
        self._optimiser.step()
        del self._optimiser.found_inf  # type: ignore[attr-defined]
        self._buffers.restore(where=skip)

    def _make_momenta(self) -> None:
        """Zeros, which the first update turns into the gradient; torch's own are empty if it is left out."""
        for group in self._optimiser.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                state = self._optimiser.state[parameter]
                if parameter.grad is not None and state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)


def loss_scale(loss: Tensor, sums: Tensor, scale: float) -> Tensor:
    """The factor of a loss's gradient: () `scale`, or NaN if the loss or a sum is not finite.

    Args:
        loss: () the loss of a pass.
        sums: (n,) float64, sums that are reported of it.
        scale: the factor.
    """
    finite = torch.isfinite(loss.detach() + sums.sum())
    return torch.full_like(loss.detach(), scale).masked_fill_(~finite, torch.nan)
