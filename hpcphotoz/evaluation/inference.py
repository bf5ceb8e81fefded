"""Attacks and forward passes over a whole dataset, batch by batch.

On a GPU and for many images, both are compiled and replayed as CUDA graphs.
"""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from hpcphotoz.attacks import Passes, perturb
from hpcphotoz.attacks.passes.cuda_graph import AttackGraphs, graph_key
from hpcphotoz.compute.capture import capture
from hpcphotoz.compute.compiler import compiled, compiler_failure
from hpcphotoz.compute.parts import ForwardInParts
from hpcphotoz.compute.precision import tf32
from hpcphotoz.compute.winograd import with_winograd
from hpcphotoz.config import Attack
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.network import RedshiftNetwork, view_of
from hpcphotoz.models.bfloat16 import Bfloat16Forward
from hpcphotoz.models.layers import FluxNetwork

PASSES = {
    "fp32": Passes(autocast=torch.float32, tf32=False),
    "tf32": Passes(autocast=torch.float32, tf32=True),
    "bf16": Passes(autocast=torch.bfloat16, tf32=False),
}
# Number of image gradients from which compiling (30 to 76 s) pays. Compiled, an H200 needs 39 us less per
# image gradient of the Inception (3,433 instead of 1,458 images/s of PGD-10), 13 us less of the small CNN.
MIN_GRADIENTS_TO_COMPILE = 2_500_000
# A forward pass takes about half as long as a gradient, and compiling saves half as much on it.
MIN_FORWARDS_TO_COMPILE = 2 * MIN_GRADIENTS_TO_COMPILE
_log = logging.getLogger(__name__)


def check_precision(name: str) -> None:
    """Raise BadInput for a name that is not in `PASSES`."""
    if name not in PASSES:
        raise BadInput(f"precision '{name}': want one of {', '.join(PASSES)}")


def image_gradients(attack: Attack) -> int:
    """Cost of an attack on one object, in image gradients; a query, a forward pass, counts as half of one."""
    passes = attack.steps * attack.restarts
    return (passes + 1) // 2 if attack.method == "square" else passes


class DatasetAttack:
    """Attacks one network on the objects of a dataset, batch by batch.

    Args:
        network: the network to attack.
        precision: of the gradients: a name in `PASSES`.
        batch: batch size; batches at the ends of shards may be smaller.
        gradients: total number of image gradients that all attacks on all objects take.
    """

    def __init__(self, network: RedshiftNetwork, precision: str, batch: int, gradients: int) -> None:
        self._network, self._passes, self._batch = network, PASSES[precision], batch
        compiles = gradients >= MIN_GRADIENTS_TO_COMPILE and _can_compile(network)
        self._graphs = AttackGraphs() if compiles else None

    def __call__(self, tensor: dict[str, Tensor], z: Tensor, attack: Attack, seed: int) -> Tensor:
        """Attacked images, (N, B, H, W) float32 nMgy, of a batch of `to_tensors` with its `attack_labels`."""
        if self._graphs is not None and len(z) == self._batch:
            replay = partial(self._graphs, graph_key(attack))
            passes = replace(self._passes, compiled=True, replay=replay)
            made: list[Tensor] = []
            failed = compiler_failure(lambda: made.append(self._attacked(tensor, z, attack, seed, passes)))
            if not failed:
                return made[0]
            said = "a compiled attack as a CUDA graph failed here (%s): attacks run without either"
            _log.warning(said, failed)
            self._graphs = None
        return self._attacked(tensor, z, attack, seed, self._passes)

    def _attacked(
        self, tensor: dict[str, Tensor], z: Tensor, attack: Attack, seed: int, passes: Passes
    ) -> Tensor:
        images, view = tensor["images"], view_of(self._network)
        # On the central 24 of 64 pixels four fifths of 1,000 squares would miss what the network sees.
        given = view.cut(images).contiguous() if attack.method == "square" else images
        found = perturb(
            self._network.module,
            given,
            tensor["ebv"],
            z,
            tensor["sky_sigma"],
            tensor["object_id"],
            attack=attack,
            bins=self._network.bins,
            seed=seed,
            passes=passes,
        )
        if given is images:
            return found
        attacked = images.clone()
        view.cut(attacked).copy_(found)
        return attacked


class DatasetForward:
    """The forward pass of one network over a dataset, batch by batch.

    Args:
        network: the network; its module is put in evaluation mode. A network of this library is copied into
            the form that is quickest on its device: its weights must stay as they are.
        batch: batch size; batches at the ends of shards may be smaller.
        forwards: total number of image forward passes.
        precision: a name in `PASSES`; by default float32 without TF32.
    """

    def __init__(self, network: RedshiftNetwork, batch: int, forwards: int, precision: str = "fp32") -> None:
        module = network.module.eval()
        own_on_cpu = isinstance(module, FluxNetwork) and not next(module.parameters()).is_cuda
        if precision == "bf16":
            module = Bfloat16Forward(module)
        elif own_on_cpu:
            module = with_winograd(module)
        if own_on_cpu:
            module = ForwardInParts(module, batch)
        self._module = module
        self._batch, self._tf32 = batch, bool(PASSES[precision].tf32)
        self._use_graph = forwards >= MIN_FORWARDS_TO_COMPILE and _can_compile(network)
        self._replay: Callable[[], object] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits, (N, bins), of images (N, B, H, W) float32 in nMgy and E(B-V) (N,) float32 in mag."""
        with tf32(self._tf32):
            if self._use_graph and len(images) == self._batch:
                if self._replay is None and (failed := compiler_failure(lambda: self._capture(images, ebv))):
                    said = "a compiled network as a CUDA graph failed here (%s)"
                    _log.warning(f"{said}: PDFs are computed without either", failed)
                    self._use_graph = False
                else:
                    return self._replayed(images, ebv)
            return cast(Tensor, self._module(images, ebv))

    def _capture(self, images: Tensor, ebv: Tensor) -> None:
        given = self._images, self._ebv = images.clone(), ebv.clone()
        forward = compiled(self._module, images.device)
        self._replay, self._logits = capture(lambda: forward(*given), images.device)

    def _replayed(self, images: Tensor, ebv: Tensor) -> Tensor:
        assert self._replay is not None
        self._images.copy_(images)
        self._ebv.copy_(ebv)
        self._replay()
        return cast(Tensor, self._logits.clone())


def _can_compile(network: RedshiftNetwork) -> bool:
    on_gpu = any(parameter.is_cuda for parameter in network.module.parameters())
    return on_gpu and importlib.util.find_spec("triton") is not None
