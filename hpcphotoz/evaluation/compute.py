"""How attacks and PDFs of a whole dataset are computed: one batch after the other, or, in long work on a GPU,
compiled and as CUDA graphs.
"""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from hpcphotoz.attacks import Passes, perturb
from hpcphotoz.attacks.compiler import compiled
from hpcphotoz.attacks.graph import Graphs, capture, kind_of
from hpcphotoz.attacks.precision import tf32
from hpcphotoz.config import Attack
from hpcphotoz.evaluation.network import Network

PASSES = {
    "fp32": Passes(tf32=False),
    "tf32": Passes(tf32=True),
    "bf16": Passes(autocast=torch.bfloat16, tf32=False),
}
# Gradients of an image after which a compile of 30 to 76 s is earned back: an H200 then takes 39 us less for
# one of the Inception (3,433 against 1,458 images/s of PGD-10), 13 us of the small CNN.
EARNS_COMPILE = 2_500_000
# Forward passes of an image: one takes about half as long as a gradient of it, and saves half as much.
FORWARD_EARNS_COMPILE = 2 * EARNS_COMPILE
_log = logging.getLogger(__name__)


class DatasetAttack:
    """Attacks one network with the objects of a dataset, batch by batch.

    Args:
        network: whom to fool.
        precision: of the gradients: a name in `PASSES`.
        batch: objects of every batch but smaller ones at the ends of shards.
        gradients: input gradients that all attacks on all objects will take.
    """

    def __init__(self, network: Network, precision: str, batch: int, gradients: int) -> None:
        self._network, self._passes, self._batch = network, PASSES[precision], batch
        self._graphs = Graphs() if gradients >= EARNS_COMPILE and _compiles(network) else None

    def __call__(self, tensor: dict[str, Tensor], z: Tensor, attack: Attack, seed: int) -> Tensor:
        """Attacked images, (N, B, H, W) float32 nMgy.

        Args:
            tensor: of `network.tensors`.
            z: (N,) float32 from `labels`.
            attack: what to do.
            seed: key of the random starts.
        """
        if self._graphs is not None and len(z) == self._batch:
            replay = partial(self._graphs, kind_of(attack))
            try:
                return self._attacked(
                    tensor, z, attack, seed, replace(self._passes, compiled=True, replay=replay)
                )
            # Compilers, their back ends and the code that they make raise errors of no common type.
            except Exception as error:
                _log.warning(
                    "a compiled attack as a CUDA graph failed here (%s): attacks run without either",
                    _line(error),
                )
                self._graphs = None
        return self._attacked(tensor, z, attack, seed, self._passes)

    def _attacked(
        self, tensor: dict[str, Tensor], z: Tensor, attack: Attack, seed: int, passes: Passes
    ) -> Tensor:
        return perturb(
            self._network.module,
            tensor["images"],
            tensor["ebv"],
            z,
            tensor["sky_sigma"],
            tensor["object_id"],
            attack=attack,
            bins=self._network.bins,
            seed=seed,
            passes=passes,
        )


class DatasetForward:
    """The forward pass of one network over a dataset, batch by batch, in float32 without TF32.

    Args:
        network: in evaluation mode from now on.
        batch: objects of every batch but smaller ones at the ends of shards.
        images: forward passes of an image that will be taken.
    """

    def __init__(self, network: Network, batch: int, images: int) -> None:
        self._module, self._batch = network.module.eval(), batch
        self._fast = images >= FORWARD_EARNS_COMPILE and _compiles(network)
        self._replay: Callable[[], object] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits, (N, bins).

        Args:
            images: (N, B, H, W) float32, nMgy.
            ebv: (N,) float32, mag.
        """
        with tf32(False):
            if self._fast and len(images) == self._batch:
                try:
                    return self._replayed(images, ebv)
                # Compilers, their back ends and the code that they make raise errors of no common type.
                except Exception as error:
                    _log.warning(
                        "a compiled network as a CUDA graph failed here (%s): PDFs come without either",
                        _line(error),
                    )
                    self._fast = False
            logits: Tensor = self._module(images, ebv)
            return logits

    def _replayed(self, images: Tensor, ebv: Tensor) -> Tensor:
        if self._replay is None:
            given = self._images, self._ebv = images.clone(), ebv.clone()
            forward = compiled(self._module, images.device)
            self._replay, self._logits = capture(lambda: forward(*given), images.device)
        self._images.copy_(images)
        self._ebv.copy_(ebv)
        self._replay()
        logits: Tensor = self._logits.clone()
        return logits


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _compiles(network: Network) -> bool:
    on_gpu = any(parameter.is_cuda for parameter in network.module.parameters())
    return on_gpu and importlib.util.find_spec("triton") is not None
