"""The precision that a device chooses, which benchmarks compare with float32."""

import torch

from benchmarks.training.galaxies import SKY, STAMP
from hpcphotoz.compute.precision import precision_of_attacks
from hpcphotoz.config.load import configure
from hpcphotoz.models.build import build

TUNED_OBJECTS = 128  # objects of a pass when precisions of a GPU are compared


def chosen_precision(device: torch.device, network: str = "compact") -> str:
    """The precision that `auto` measures to be fastest on a device, without compiling and CUDA graphs.

    Args:
        device: a CPU, whose choice does not depend on the network, or a GPU.
        network: by name.
    """
    config = configure("benchmark", name=network)
    module = build(config.model, stamp=STAMP, scale=tuple(10 * s for s in SKY)).to(device)
    shape = (TUNED_OBJECTS, len(SKY), STAMP, STAMP)
    return precision_of_attacks("auto", module, device, shape)[0]


def default_precision(device: torch.device) -> str:
    """The default precision of torch and the peers: on a GPU, cuDNN has TF32."""
    return "tf32" if device.type == "cuda" else "fp32"
