"""How a device computes: what the options called auto stand for on it.

Each default is what `benchmarks/bench_options.py` found quickest on the device; `benchmarks/LOG.md` has the
figures.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hpcphotoz.attacks import Passes
from hpcphotoz.config import Config, Training
from hpcphotoz.errors import BadInput
from hpcphotoz.models.form import reform
from hpcphotoz.training import group
from hpcphotoz.world import World

_MICRO_BATCH_ON_CPU = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """What is done, none of it left open."""

    training: torch.dtype | None  # autocast of training's passes; None: float32
    attack: torch.dtype | None
    channels_last: bool
    merged: bool
    padded: bool
    compiled: bool
    graphs: str  # "off", "attack", "step"
    fused_adam: bool
    micro_batch: int | None  # objects a pass; None: all

    @property
    def passes(self) -> Passes:
        """The attack's passes."""
        return Passes(autocast=self.attack, compiled=self.compiled)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of training's passes; parameters and updates stay float32."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.training is not None)

    def placed(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The network on the device, in the memory order and form that are quickest there."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        module = module.to(device, memory_format=order)  # type: ignore[call-overload]
        return reform(module, merged=self.merged, padded=self.padded)

    def facts(self) -> dict[str, Any]:
        """For the run's provenance."""
        names = {None: "fp32", torch.bfloat16: "bf16"}
        return {**vars(self), "training": names[self.training], "attack": names[self.attack]}


def speed_of(training: Training, device: torch.device) -> Speed:
    """Settle what is open."""
    on_gpu = device.type == "cuda"
    auto = "bf16" if has_bfloat16_units(device) else "fp32"
    lower = {"bf16": torch.bfloat16, "fp32": None}
    passes = lower[auto if training.precision == "auto" else training.precision]
    graphs = "off" if training.graphs == "auto" else training.graphs
    if graphs != "off" and not on_gpu:
        _log.warning("training.graphs %s: no CUDA device: passes are launched one by one", graphs)
    return Speed(
        training=passes,
        attack=passes if training.attack_precision == "training" else lower[training.attack_precision],
        channels_last=training.channels_last != "off",
        merged=training.merged == "on" or (training.merged == "auto" and not on_gpu),
        padded=training.padded == "on",
        compiled=training.compiled == "on",
        graphs=graphs if on_gpu else "off",
        fused_adam=training.fused_adam != "off",
        micro_batch=training.micro_batch or (None if on_gpu else _MICRO_BATCH_ON_CPU),
    )


def resolved(config: Config, device: torch.device, world: World) -> Config:
    """The configuration with the precision that this run has on all ranks: it is part of what is trained.

    Raises:
        BadInput: ranks whose devices want different ones.
    """
    if config.training.precision != "auto":
        return config
    precision = "bf16" if has_bfloat16_units(device) else "fp32"
    if len(set(group.gather(precision, world))) > 1:
        raise BadInput("training.precision auto: not all ranks have bfloat16 units: say fp32 or bf16")
    training = config.training.model_copy(update={"precision": precision})
    return config.model_copy(update={"training": training})


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether bfloat16 matrix products have hardware of their own: there it halves a step, elsewhere not."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.11
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
