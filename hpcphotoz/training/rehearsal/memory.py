"""The memory of a rank, part by part, on its device and on its host."""

import copy
import os
import resource
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.checkpoint import bytes_of

_ATTACK_COPIES = 5  # images of an attack: start, current, best, gradient, scratch


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank's memory by what they hold."""

    on_device: dict[str, int]
    on_host: dict[str, int]  # beside those, if the device is a GPU

    @property
    def device_total(self) -> int:
        """Bytes on the device."""
        return sum(self.on_device.values())

    @property
    def host_total(self) -> int:
        """Bytes on the host."""
        return sum(self.on_host.values())


def network_bytes(components: TrainingComponents) -> dict[str, int]:
    """Bytes of the network, its gradients, its optimiser and its averaged weights.

    Before the first step the optimiser has no state: Adam's two moments are counted then.
    """
    module, average = components.module, components.average
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    state = bytes_of(components.optimiser.state_dict()["state"])
    found = {
        "network": sum(t.nbytes for t in (*module.parameters(), *module.buffers())),
        "gradients": trained,
        "optimiser": state or 2 * trained,
    }
    return found | ({"averaged weights": bytes_of(average.state_dict())} if average else {})


def activation_bytes(components: TrainingComponents, batch: RankBatch) -> int:
    """Bytes per object that a forward pass keeps for the backward pass, counted on two objects."""
    module, two = copy.deepcopy(components.module), batch.first(2)
    if not len(two.images):
        return 0
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # or the memory of one tensor would be counted as that of a later one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with components.compute.autocast(two.images.device):
            logits = module(two.images, two.ebv)
        functional.cross_entropy(logits.float(), logits.detach().argmax(1))
    return sum(kept.values()) // len(two.images)


def batch_bytes(
    image_bytes: int, objects: int, attacked: int, per_object: int, at_once: int
) -> dict[str, int]:
    """Bytes of a step: activations of one micro-batch, the images of the batch, and those of the attack.

    Args:
        image_bytes: of one image in float32.
        objects, attacked: of the rank with the most.
        per_object: activations, as `activation_bytes` counts them.
        at_once: objects of a pass.
    """
    return {
        "activations": per_object * min(objects, at_once),
        "images": image_bytes * objects,
        "attack": image_bytes * attacked * _ATTACK_COPIES,
    }


def peak_bytes(device: torch.device) -> int:
    """The most that this process has had: of its GPU's memory, or of the host's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_bytes(device: torch.device) -> int:
    """Memory of the GPU, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
