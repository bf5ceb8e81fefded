"""Adversarial attacks on redshift networks: loops over kernels. Flux is in nanomaggies, epsilon in sky
sigmas.

Everything takes any `model(images, ebv) -> logits`. Only input gradients are computed: parameters are frozen
while an attack runs, the model is in evaluation mode, and a DistributedDataParallel wrapper is taken off
(through it each step would cost a collective). Losses are summed over objects: a mean would push bfloat16
gradients into underflow.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.config import Attack
from hpcphotoz.kernels import reference
from hpcphotoz.models.bins import RedshiftBins

Model = Callable[[Tensor, Tensor], Tensor]  # (images, ebv) -> logits; usually an nn.Module
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N, bins), redshift (N,) -> (N,)
_log = logging.getLogger(__name__)


def cross_entropy(bins: RedshiftBins) -> Loss:
    """Cross-entropy of the PDF against the bin that holds the redshift."""
    return lambda logits, z: functional.cross_entropy(logits.float(), bins.index(z), reduction="none")


def shift(bins: RedshiftBins) -> Loss:
    """|<z> - z|: how far the mean of the PDF lies from the redshift."""
    return lambda logits, z: (bins.mean(logits) - z).abs()


def loss_of(name: str, bins: RedshiftBins) -> Loss:
    """The loss that a configuration names."""
    return {"cross_entropy": cross_entropy, "shift": shift}[name](bins)


def fgsm(model: Model, images: Tensor, ebv: Tensor, z: Tensor, eps: Tensor, *, loss: Loss) -> Tensor:
    """Fast gradient sign method: one step to the corner of the ball (Goodfellow et al. 2015,
    arXiv:1412.6572).

    Arguments, errors and result as `pgd`.
    """
    return pgd(model, images, ebv, z, eps, loss=loss, steps=1, step_size=eps)


def pgd(
    model: Model,
    images: Tensor,
    ebv: Tensor,
    z: Tensor,
    eps: Tensor,
    *,
    loss: Loss,
    steps: int = 10,
    step_size: Tensor | None = None,
    start: Tensor | None = None,
    lo: Tensor | None = None,
    hi: Tensor | None = None,
) -> Tensor:
    """Projected gradient ascent in an L-infinity ball (Madry et al. 2018, arXiv:1706.06083).

    Args:
        model: anything called as model(images, ebv) that returns logits; a module is left as it was found.
        images: (N, B, H, W) float32, nMgy.
        ebv: (N,) float32, mag.
        z: (N,) float32, the redshift to move away from.
        eps: (B,) or (N, B) float32, radius per band, nMgy.
        loss: what to raise, per object: `cross_entropy(bins)`, `shift(bins)` or your own.
        steps: gradient evaluations.
        step_size: like `eps`; 2.5 eps / steps by default.
        start: (N, B, H, W) on [-1, 1], where to start in units of eps; the centre by default.
        lo, hi: (B,) float32, bounds on the flux of a pixel, nMgy; none by default.

    Returns:
        The attacked images, (N, B, H, W) float32, within eps of `images` up to one rounding.

    Raises:
        ValueError: shapes or types that do not belong together.
    """
    images = images.detach()
    images = images.contiguous(memory_format=_format(images))
    eps = _per_object(eps, images)
    step = _per_object(step_size, images) if step_size is not None else 2.5 / steps * eps
    infinity = torch.full(images.shape[1:2], torch.inf, device=images.device)
    lo = -infinity if lo is None else lo.to(images).contiguous()
    hi = infinity if hi is None else hi.to(images).contiguous()
    advance = _step_on(images.device.type)
    adv = images
    if start is not None:
        moved = (images + eps[:, :, None, None] * start).contiguous(memory_format=_format(images))
        adv = advance(moved, images, torch.zeros_like(images), eps, step, lo, hi)
    with frozen(model) as inner:
        for _ in range(steps):
            grad = _input_gradient(inner, adv, ebv, z, loss)
            adv = advance(adv, images, grad, eps, step, lo, hi)
    return adv


def perturb(
    model: Model,
    images: Tensor,
    ebv: Tensor,
    z: Tensor,
    sky_sigma: Tensor,
    object_id: Tensor,
    *,
    attack: Attack,
    bins: RedshiftBins,
    seed: int = 0,
    epoch: int = 0,
) -> Tensor:
    """Run the attack that a configuration describes.

    Args:
        model, images, ebv, z: as `pgd`.
        sky_sigma: (N, B) float32, nMgy: epsilon and step are multiples of it, per object and band.
        object_id: (N,) int64: random starts are keyed by (seed, epoch, object), never by place or rank.
        attack: method, epsilon, steps, start and loss; its fraction is not used here.
        bins: what the logits mean.
        seed, epoch: key of the random starts.
    """
    loss = loss_of(attack.loss, bins)
    eps = attack.eps * sky_sigma
    if attack.method == "fgsm":
        return fgsm(model, images, ebv, z, eps, loss=loss)
    step_size = attack.step_size * sky_sigma if attack.step_size else None
    start = reference.uniform(images.shape, object_id, seed, epoch) if attack.random_start else None
    return pgd(model, images, ebv, z, eps, loss=loss, steps=attack.steps, step_size=step_size, start=start)


@contextmanager
def frozen(model: Model) -> Iterator[Model]:
    """The bare module in evaluation mode with no parameter requiring a gradient; everything is put back
    after.

    Freezing matters even with `autograd.grad`: torch.compile would compute the weight gradients all the same.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not isinstance(inner, nn.Module):  # a plain function: nothing to freeze
        yield inner
        return
    was = [(module, module.training) for module in inner.modules()]
    wanted = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    inner.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield inner
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, training in was:
            module.training = training


def _input_gradient(model: Model, adv: Tensor, ebv: Tensor, z: Tensor, loss: Loss) -> Tensor:
    with torch.enable_grad():
        x = adv.detach().requires_grad_()
        total = loss(model(x, ebv), z).sum()
        (grad,) = torch.autograd.grad(total, x)
    return grad.contiguous(memory_format=_format(adv))


def _format(images: Tensor) -> torch.memory_format:
    if not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _per_object(radius: Tensor, images: Tensor) -> Tensor:
    return radius.to(images).expand(images.shape[:2]).contiguous()


def has_triton(device: str, otherwise: str) -> bool:
    """Whether kernels can run; where a GPU has none, says what happens otherwise."""
    found = importlib.util.find_spec("triton") is not None
    if not found and device == "cuda":
        _log.warning("triton is not installed: %s", otherwise)
    return found


@cache
def _step_on(device: str) -> Step:
    if not has_triton(device, "attack steps run unfused, about four times slower each"):
        return reference.pgd
    from hpcphotoz.kernels.pgd import pgd as fused

    step: Step = fused
    return step
