"""A rank's share of a step, ready to compute on: images decoded and turned, rows sorted out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.attacks import has_triton
from hpcphotoz.config import Config
from hpcphotoz.data.order import attacked_mask, derive_key, keyed_hash
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.device import copy_to_device
from hpcphotoz.kernels import reference

Load = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
_AUGMENT = 10  # purpose of random numbers: streams that must not repeat each other


@dataclass(frozen=True)
class RankBatch:
    """One rank's slice of a global batch; any of it may be empty."""

    images: Tensor  # (n, B, H, W) float32 nMgy, turned as this epoch wants
    ebv: Tensor  # (n,) float32, mag
    z_spec: Tensor  # (n,) float32
    sky_sigma: Tensor  # (n, B) float32, nMgy
    object_id: Tensor  # (n,) int64
    attacked: Tensor  # (m,) int64: rows that are attacked, in order
    clean: Tensor  # (n - m,) int64: the others
    positions: np.ndarray[tuple[int], np.dtype[np.int64]]  # (m,) of the attacked rows in the global batch
    size: int  # objects in the global batch
    epoch: int | Tensor  # a tensor where a CUDA graph reads it
    step: int  # optimiser steps before this one
    skipped: int = 0  # damaged objects that were left out
    problem: str | None = None  # why it is empty: this rank cannot read

    def first(self, n: int) -> "RankBatch":
        """The first n attacked objects; where none is attacked, the first n."""
        ids = self.attacked[:n] if len(self.attacked) else torch.arange(min(n, len(self.images)))
        rows = {k: getattr(self, k)[ids] for k in ("images", "ebv", "z_spec", "sky_sigma", "object_id")}
        every = torch.arange(len(ids), device=self.images.device)
        marked = every if len(self.attacked) else every[:0]
        return replace(
            self, **rows, attacked=marked, clean=every[len(marked) :], positions=self.positions[: len(marked)]
        )


def make_rank_batch(batch: Batch, config: Config, epoch: int, step: int) -> RankBatch:
    """Decode and turn a batch's images, and find which are attacked: those at the attacked positions of the
    global batch. The stream draws each object's position anew each epoch from (seed, epoch, object).

    Args:
        batch: as the stream gives it; `position` and `object_id` in host memory.
        config: seed, augmentation, fraction of attacked objects.
        epoch, step: where in the run; the epoch draws one of the eight symmetries of the square.
    """
    device = batch.images.device
    position = batch.position.numpy()
    chosen = attacked_mask(position, config.adversarial.fraction)
    rows = [copy_to_device(torch.from_numpy(np.flatnonzero(which)), device) for which in (chosen, ~chosen)]
    images = flux(batch, config.run.seed if config.data.augment else None, epoch)
    return RankBatch(
        images=images,
        ebv=batch.ebv,
        z_spec=batch.z_spec,
        sky_sigma=batch.sky_sigma,
        object_id=copy_to_device(batch.object_id, device),
        attacked=rows[0],
        clean=rows[1],
        positions=position[chosen],
        size=batch.size,
        epoch=epoch,
        step=step,
        skipped=batch.skipped,
    )


def flux(batch: Batch, seed: int | None = None, epoch: int = 0) -> Tensor:
    """The images in nMgy, (n, B, y, x) float32 channels_last: decoded, turned and cast in one pass.

    Args:
        batch: as the stream gives it.
        seed, epoch: with (object) they draw one of the eight symmetries of the square; None: not turned.
    """
    code = None
    if seed is not None:
        ids = batch.object_id.numpy().astype(np.uint64)
        words = keyed_hash(ids, derive_key(seed, epoch, _AUGMENT)) >> np.uint64(61)
        code = copy_to_device(torch.from_numpy(words.astype(np.int64)), batch.images.device)
    return _load_on(batch.images.device.type)(batch.images, batch.image_unit, code)


@cache
def _load_on(device: str) -> Load:
    if not has_triton(device, "images are decoded and turned in several passes"):
        return reference.load
    from hpcphotoz.kernels.load import load as fused

    load: Load = fused
    return load
