"""The kernels that attacks loop over: those of Triton on a GPU, the plain torch reference elsewhere."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor

from hpcphotoz.kernels import redshift_loss_reference
from hpcphotoz.kernels.attack import pgd_normalised_reference, reference, start_on_cpu, start_reference
from hpcphotoz.kernels.network import reference as network_reference

StepKernel = Callable[..., Tensor]  # arguments and result as `attack.reference.pgd`
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """The definitions in plain torch, or the operators that replace them, by name.

    The functions of the attack are those of `kernels.attack`, from its `reference`, `start_reference` and
    `pgd_normalised_reference`. `redshift_loss` and the function after it are those of
    `kernels.redshift_loss_reference`, `prelu_pool` and the two after it those of `kernels.network.reference`.
    Their operators replace them on a GPU only: gradients on a CPU are those of autograd, bit for bit.

    `in_place` has the steps that are taken in the memory of the attacked images, by ball, where that saves
    anything: on a GPU.
    """

    pgd: StepKernel
    l2: StepKernel
    flux: StepKernel
    momentum: Callable[..., Tensor]
    start: Callable[..., Tensor]
    select: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    redshift_loss: Callable[..., Tensor] = redshift_loss_reference.redshift_loss
    redshift_loss_and_gradient: Callable[..., tuple[Tensor, Tensor]] = (
        redshift_loss_reference.redshift_loss_and_gradient
    )
    prelu_pool: Callable[..., Tensor] = network_reference.prelu_pool
    prelu_pool_gradients: Callable[..., tuple[Tensor, ...]] = network_reference.prelu_pool_gradients
    prelu_pool_input_gradient: Callable[..., Tensor] = network_reference.prelu_pool_input_gradient
    in_place: Mapping[str, Callable[..., None]] = field(default_factory=dict)
    pgd_normalised: Callable[..., None] = pgd_normalised_reference.pgd_normalised

    def step(self, ball: str) -> StepKernel:
        """The step of a ball: "linf", "l2" or "flux"."""
        found: StepKernel = {"linf": self.pgd, "l2": self.l2, "flux": self.flux}[ball]
        return found


def uses_triton(device: str, otherwise: str) -> bool:
    """Whether kernels of Triton run on a type of device: on GPUs, where it is installed.

    On a GPU without it, logs a warning that says what happens instead. On a CPU the operators would run the
    reference too, and their import, with that of torch's compiler, takes over a second.
    """
    if device != "cuda":
        return False
    found = importlib.util.find_spec("triton") is not None
    if not found:
        _log.warning("triton is not installed: %s", otherwise)
    return found


@cache
def kernels_on(device: str) -> Kernels:
    """The kernels for tensors on a type of device, such as "cuda"."""
    if not uses_triton(device, "attack steps run unfused, about four times slower each"):
        r = reference
        begin: Callable[..., Tensor] = start_on_cpu.start if device == "cpu" else start_reference.start
        return Kernels(r.pgd, r.l2, r.flux, r.momentum, begin, r.select)
    from hpcphotoz.kernels.attack import flux, l2, pgd, pgd_normalised, select, start
    from hpcphotoz.kernels.network import prelu_pool as p
    from hpcphotoz.kernels.redshift_loss import redshift_loss, redshift_loss_and_gradient

    steps = pgd.pgd, l2.l2, flux.flux, pgd.momentum, start.start, select.select
    activations = p.prelu_pool, p.prelu_pool_gradients, p.prelu_pool_input_gradient
    in_place = {"linf": pgd.pgd_, "l2": l2.l2_, "flux": flux.flux_}
    losses = redshift_loss, redshift_loss_and_gradient
    return Kernels(*steps, *losses, *activations, in_place, pgd_normalised.pgd_normalised)
