"""One optimisation step: which objects are attacked, the attack, the mixed batch, the loss."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.attacks import has_triton, perturb
from hpcphotoz.config import Config, Training
from hpcphotoz.data.order import adversarial, key_of, mix
from hpcphotoz.data.stream import Batch
from hpcphotoz.kernels import reference
from hpcphotoz.models.bins import RedshiftBins

Load = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
_AUGMENT, _START = 10, 11  # purposes of random numbers: streams that must not repeat each other


def flux(batch: Batch, seed: int | None = None, epoch: int = 0) -> Tensor:
    """The images in nMgy, (n, B, y, x) float32 channels_last: decoded, turned and cast in one pass.

    Args:
        batch: as the stream gives it.
        seed, epoch: with (object) they draw one of the eight symmetries of the square; None: not turned.
    """
    code = None
    if seed is not None:
        ids = batch.object_id.cpu().numpy().astype(np.uint64)
        words = mix(ids, key_of(seed, epoch, _AUGMENT)) >> np.uint64(61)
        code = torch.from_numpy(words.astype(np.int64)).to(batch.images.device)
    return _load_on(batch.images.device.type)(batch.images, batch.image_unit, code)


@cache
def _load_on(device: str) -> Load:
    if not has_triton(device, "images are decoded and turned in several passes"):
        return reference.load
    from hpcphotoz.kernels.load import load as fused

    load: Load = fused
    return load


def inject(
    model: nn.Module, images: Tensor, batch: Batch, config: Config, bins: RedshiftBins, epoch: int
) -> Tensor:
    """Replace the adversarial positions of the batch by attacked images.

    Returns:
        Which rows were attacked, (n,) bool; `images` is changed in place.
    """
    chosen = torch.from_numpy(adversarial(batch.position.cpu().numpy(), config.attack.fraction)).to(
        images.device
    )
    if chosen.any():
        rows = chosen.nonzero()[:, 0]
        with autocast(config.training, images.device):
            images[rows] = perturb(
                model,
                images[rows],
                batch.ebv[rows],
                batch.z_spec[rows],
                batch.sky_sigma[rows],
                batch.object_id[rows],
                attack=config.attack,
                bins=bins,
                seed=key_of(config.training.seed, _START) >> 1,
                epoch=epoch,
            )
    return chosen


def optimisation_step(
    model: DistributedDataParallel | nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    bins: RedshiftBins,
    *,
    epoch: int,
    world_size: int,
) -> Tensor:
    """Attack, forward, backward, update.

    The loss is the mean over the *global* batch, so that ranks with slices of different length (or none) add
    up to what one rank would compute.

    Returns:
        (4,) float64: sum of the losses of this rank's clean objects, their number, the same of the attacked
        ones.
    """
    images = flux(batch, config.training.seed if config.training.augment else None, epoch)
    attacked = inject(model, images, batch, config, bins, epoch)
    with autocast(config.training, images.device):
        logits = model(images, batch.ebv)
    each = functional.cross_entropy(
        logits.float(), target(batch.z_spec, bins, config.training), reduction="none"
    )
    # DistributedDataParallel averages gradients over ranks: undo its division, divide by the objects there
    # are.
    loss = each.sum() * (world_size / max(batch.size, 1))
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    each = each.detach().double()
    sums = [each[~attacked].sum(), (~attacked).sum(), each[attacked].sum(), attacked.sum()]
    return torch.stack([value.double() for value in sums])


def target(z: Tensor, bins: RedshiftBins, training: Training) -> Tensor:
    """The label of each object: the index of its bin (N,), or with `label_width` a Gaussian over bins (N,
    bins).
    """
    if not training.label_width:
        return bins.index(z)
    distance = (bins.centres(z.device) - z[:, None]) / (training.label_width * bins.width)
    return torch.softmax(-0.5 * distance**2, dim=1)


def learning_rate(step: int, total: int, training: Training) -> float:
    """The rate of a step counted from 0: linear warm-up, then the schedule over all `total` steps."""
    warm = min(1.0, (step + 1) / (training.warmup_steps + 1))
    if training.schedule == "cosine":
        return training.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))
    if training.schedule == "halfway" and step >= total // 2:
        return training.learning_rate * warm / 5
    return training.learning_rate * warm


def autocast(training: Training, device: torch.device) -> torch.autocast:
    """The precision of forward passes; parameters and updates stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16")
