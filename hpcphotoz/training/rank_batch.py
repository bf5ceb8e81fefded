"""One rank's slice of a global batch: images decoded and augmented, rows divided into attacked and clean."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.attacks import uses_triton
from hpcphotoz.attacks.sky_noise import sky_noise
from hpcphotoz.config import Config, Model
from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.order import attacked_mask, derive_key, keyed_hash
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.device import copy_to_device
from hpcphotoz.kernels import load_on_cpu, reference
from hpcphotoz.models.view import View

Load = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
_AUGMENT, _NOISE = 10, 15  # purposes of these random numbers, different from those of all others


@dataclass(frozen=True)
class RankBatch:
    """One rank's slice of a global batch; it may be empty."""

    images: Tensor  # (n, B, H, W) float32 nMgy, augmented; what the network sees of the stamps
    ebv: Tensor  # (n,) float32, mag
    z_spec: Tensor  # (n,) float32
    sky_sigma: Tensor  # (n, B) float32, nMgy
    object_id: Tensor  # (n,) int64; of several datasets: the key of the object's random numbers
    attacked: Tensor  # (m,) int64: rows that are attacked, in order
    clean: Tensor  # (n - m,) int64: the other rows
    positions: np.ndarray[tuple[int], np.dtype[np.int64]]  # (m,) places of `attacked` in the global batch
    catalogue_id: np.ndarray[tuple[int], np.dtype[np.int64]]  # (n,) object ids of the datasets, on the host
    size: int  # objects in the global batch
    epoch: int | Tensor  # a tensor in the batch that a CUDA graph reads
    step: int  # optimiser steps before this one
    skipped: int = 0  # damaged objects that were left out
    problem: str | None = None  # why this rank cannot read; the batch is then empty

    def first(self, n: int) -> "RankBatch":
        """The first n attacked objects, or the first n objects if none is attacked."""
        ids = self.attacked[:n] if len(self.attacked) else torch.arange(min(n, len(self.images)))
        rows: dict[str, Any] = {
            k: getattr(self, k)[ids] for k in ("images", "ebv", "z_spec", "sky_sigma", "object_id")
        }
        every = torch.arange(len(ids), device=self.images.device)
        m = len(ids) if len(self.attacked) else 0
        rows["catalogue_id"] = self.catalogue_id[ids.cpu().numpy()]
        return replace(self, **rows, attacked=every[:m], clean=every[m:], positions=self.positions[:m])


def make_rank_batch(batch: Batch, config: Config, epoch: int, step: int) -> RankBatch:
    """Decode and augment the images of a batch, and divide its rows into attacked and clean ones.

    The attacked rows are those at fixed positions of the global batch. The stream draws the position of every
    object anew each epoch, from (seed, epoch, object), so that other objects are attacked each time.

    Args:
        batch: a batch of the stream; `position` and `object_id` in host memory.
        config: seed, augmentation, fraction of attacked objects.
        epoch, step: of the batch, counted from 0.
    """
    device = batch.images.device
    position = batch.position.numpy()
    chosen = attacked_mask(position, config.adversarial.fraction)
    rows = [copy_to_device(torch.from_numpy(np.flatnonzero(which)), device) for which in (chosen, ~chosen)]
    images = flux(batch, config.model, config.run.seed if config.data.augment else None, epoch)
    object_id = copy_to_device(_random_key(batch), device)
    if config.data.noise:
        images = _with_noise(images, batch.sky_sigma, object_id, config, epoch)
    return RankBatch(
        images=images,
        ebv=batch.ebv,
        z_spec=batch.z_spec,
        sky_sigma=batch.sky_sigma,
        object_id=object_id,
        attacked=rows[0],
        clean=rows[1],
        positions=position[chosen],
        catalogue_id=batch.object_id.numpy().copy(),  # its memory may be that of a later batch
        size=batch.size,
        epoch=epoch,
        step=step,
        skipped=batch.skipped,
    )


def _with_noise(images: Tensor, sky_sigma: Tensor, object_id: Tensor, config: Config, epoch: int) -> Tensor:
    """The images with the noise of `data.noise`, keyed by (seed, epoch, object)."""
    # The mean of b x b pixels has a b-th of the noise of one.
    sigma = config.data.noise / config.model.binning
    noise = sky_noise(images, sky_sigma, object_id, derive_key(config.run.seed, _NOISE), epoch)
    return images + (sigma * noise).contiguous(memory_format=torch.channels_last)


def flux(batch: Batch, model: Model | None = None, seed: int | None = None, epoch: int = 0) -> Tensor:
    """Decoded images, (n, B, y, x) float32 nMgy channels_last, augmented by a symmetry of the square.

    Args:
        batch: a batch of the stream.
        model: the network that takes the images: they are cut and binned to its `View` here, once; None:
            whole stamps.
        seed, epoch: choose, with the object's number, one of the eight; seed None: no image is turned.
    """
    code = None
    if seed is not None:
        ids = _random_key(batch).numpy().astype(np.uint64)
        words = keyed_hash(ids, derive_key(seed, epoch, _AUGMENT)) >> np.uint64(61)
        code = copy_to_device(torch.from_numpy(words.astype(np.int64)), batch.images.device)
    view, unit, device = (
        View.of(model or Model(), batch.images.shape[-1]),
        batch.image_unit,
        batch.images.device.type,
    )
    load, images = _load_on(device), view.cut(batch.images).contiguous()
    if device == "cpu" and view.binning > 1:  # rows stay contiguous, for the mean over pixels
        decoded = encoding.decode(images.numpy(), None if unit is None else unit.numpy())
        images, unit = torch.from_numpy(decoded), None
    if images.dtype == torch.float32:  # turning whole stamps was a sixth of a step
        return load(view(images), unit, code)
    return view(load(images, unit, code))


def image_shape(model: Model, header: Header) -> tuple[int, int, int]:
    """(B, y, x) of the images in rank batches."""
    side = View.of(model, header.stamp).side
    return len(header.bands), side, side


def _random_key(batch: Batch) -> Tensor:
    return batch.object_id if batch.random_key is None else batch.random_key


@cache
def _load_on(device: str) -> Load:
    if device == "cpu":
        return load_on_cpu.load
    if not uses_triton(device, "images are decoded and turned in several passes"):
        return reference.load
    from hpcphotoz.kernels.load import load as fused

    load: Load = fused
    return load
