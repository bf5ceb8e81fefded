"""Resolves the options of section `compute` for a device: what `auto` stands for there, and why.

The precision is measured on the device. The other defaults are what `benchmarks/bench_options.py` found to be
quickest on a device of its kind; `benchmarks/LOG.md` has the figures.
"""

import importlib.util
import json
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hpcphotoz.attacks import Passes
from hpcphotoz.compute.compiler import compiler_failure
from hpcphotoz.compute.precision import (
    Precision,
    autocast_dtype,
    bf16_warning,
    bfloat16_speedup,
    has_tf32,
    quicker_precision,
    quickest_on_cpu,
    seconds_of_a_pass,
)
from hpcphotoz.compute.small_maps import keep_small_maps_right
from hpcphotoz.config import Compute, Config
from hpcphotoz.models.inception import merge_pointwise
from hpcphotoz.training.distributed import group
from hpcphotoz.world import World

_MICRO_BATCH_ON_CPU = 64
# Images of a rank after which compiling has saved the time it took. It takes 76 s the first time, and about
# half of that again for the precision that is tried and not chosen. On an H200 a graph of the step trains on
# 4,345 images/s without and 7,171 with the compiler: 1.3 million images, and a margin.
MIN_IMAGES_TO_COMPILE = 2_000_000
_NOT_TIMED = "deterministic: nothing is chosen by its time"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComputeOptions:
    """Precision, memory format, compilation and graphs, resolved for one device."""

    training: torch.dtype | None  # autocast of training's passes; None: float32
    attack: torch.dtype | None
    channels_last: bool
    merged: bool  # 1x1 convolutions of one input computed as one: quicker on CPUs
    compiled: bool
    graphs: str  # "off", "attack", "step"
    fused_adam: bool
    micro_batch: int | None  # objects per pass; None: all
    tf32: bool = False  # whether float32 products of training's passes may be rounded to TF32
    attack_tf32: bool = False

    @property
    def passes(self) -> Passes:
        """How the passes of attacks run."""
        return Passes(autocast=self.attack, compiled=self.compiled, tf32=self.attack_tf32)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context with the precision of training's passes; parameters and updates stay float32."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.training is not None)

    def placed(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The network on the device, in the memory order and form that are quickest there."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        module = module.to(device, memory_format=order)  # type: ignore[call-overload]
        if self.merged:
            merge_pointwise(module)
        if device.type == "cpu":
            keep_small_maps_right(module)
        return module

    def facts(self) -> dict[str, Any]:
        """The options as they are recorded in provenance.json."""
        found = {**vars(self), "training": self._name(self.training, self.tf32)}
        found["attack"] = self._name(self.attack, self.attack_tf32)
        return {name: value for name, value in found.items() if name not in ("tf32", "attack_tf32")}

    @staticmethod
    def _name(dtype: torch.dtype | None, tf32: bool) -> Precision:
        return "bf16" if dtype else "tf32" if tf32 else "fp32"


def compute_options(compute: Compute, device: torch.device) -> ComputeOptions:
    """Resolve the options for a device.

    Options that are still `auto` get the value that suits every device of its kind: no compiler, no graphs,
    and on a GPU tf32 if it has the units, because without compiler and graphs tf32 is quicker than bf16.
    `choose_compute` chooses precision, compiler and graphs for a run.
    """
    on_gpu = device.type == "cuda"
    precision = compute.precision
    if precision == "auto":
        unmeasured: Precision = "tf32" if on_gpu and has_tf32(device) else "fp32"
        precision = unmeasured if on_gpu else quickest_on_cpu(bfloat16_speedup())[0]
    of_attack = precision if compute.attack_precision == "training" else compute.attack_precision
    graphs = "off" if compute.graphs == "auto" else compute.graphs
    if graphs != "off" and not on_gpu:
        _log.warning("compute.graphs %s: no CUDA device: passes are launched one by one", graphs)
    return ComputeOptions(
        training=autocast_dtype(precision),
        attack=autocast_dtype(of_attack),
        tf32=on_gpu and precision == "tf32",
        attack_tf32=on_gpu and of_attack == "tf32",
        channels_last=compute.channels_last != "off",
        merged=not on_gpu,
        compiled=compute.compiled == "on",
        graphs=graphs if on_gpu else "off",
        fused_adam=compute.fused_adam != "off",
        micro_batch=compute.micro_batch or (None if on_gpu else _MICRO_BATCH_ON_CPU),
    )


@dataclass(frozen=True)
class ComputeChoice:
    """Section `compute` of a run with precision, compiler and graphs chosen, the same on all ranks."""

    compute: Compute
    message: str  # one line that says what was chosen and why
    warning: str = ""  # one line on the cost of an option that the user chose


def choose_compute(
    config: Config,
    world: World,
    module: nn.Module,
    device: torch.device,
    shape: tuple[int, ...],
    objects: int,
    begun: str | None = None,
) -> ComputeChoice:
    """Choose precision, compiler and graphs; called on all ranks.

    Args:
        config: configuration from the user.
        world: all ranks.
        module, device: the network, on the device of this rank.
        shape: (n, B, H, W) of this rank's slice of a global batch.
        objects: number of images that the run trains on, over all ranks and epochs.
        begun: precision in which the run was begun, which it keeps; None: a new run.
    """
    compute = config.compute
    if device.type != "cuda":
        return _choose_on_cpu(compute, world, begun)
    graphs, why_graphs = _graphs(config)
    compiled, why_compiled = _compiled(compute, graphs, objects // world.size)
    precision: str
    if compute.precision != "auto":
        precision, why = compute.precision, "as asked"
    elif begun:
        precision, why = begun, "as the run was begun"
    elif not has_tf32(device):
        precision, why = "fp32", "no units for tf32 and bf16"
    elif compute.deterministic:
        precision, why = "tf32", _NOT_TIMED
    else:
        seconds, failed = _trial(module, device, shape, compiled, graphs != "off", world)
        if failed:
            compiled, why_compiled = False, f"not compiled (torch.compile failed here: {failed})"
        precision, why = quicker_precision(seconds, shape[0])
    values = {"precision": precision, "graphs": graphs, "compiled": "on" if compiled else "off"}
    name = torch.cuda.get_device_name(device)
    message = f"{name}: precision {precision} ({why}), {why_graphs}, {why_compiled}"
    return ComputeChoice(compute.model_copy(update=values), message)


def _choose_on_cpu(compute: Compute, world: World, begun: str | None) -> ComputeChoice:
    # The slowest rank decides, because all others wait for it.
    speedup = min(float(text or 1) for text in group.gather_texts(str(bfloat16_speedup()), world))
    precision: str
    precision, why = quickest_on_cpu(speedup)
    if compute.precision != "auto":
        precision, why = compute.precision, "as asked"
    elif begun:
        precision, why = begun, "as the run was begun"
    elif compute.deterministic:
        precision, why = "fp32", _NOT_TIMED
    attack = compute.attack_precision
    of_attack = "" if attack in ("training", precision) else f", attack {attack} (as asked)"
    kept = "the run keeps the precision it was begun in; another one wants a new --out" if begun else ""
    slow = bf16_warning(precision, speedup, kept or "want auto or fp32")
    slow = slow or bf16_warning(attack, speedup, kept or "want attack_precision training or fp32")
    message = f"CPU: precision {precision} ({why}){of_attack}"
    return ComputeChoice(compute.model_copy(update={"precision": precision}), message, slow or "")


def _graphs(config: Config) -> tuple[str, str]:
    """What a GPU captures as a CUDA graph, and the same in words."""
    compute, overlap = config.compute, config.overlap
    if compute.graphs != "auto":
        bare = overlap.mode == "streams" and compute.graphs == "off"
        slower = ", though overlap streams is slower than off without a graph of the attack" if bare else ""
        return compute.graphs, f"graphs {compute.graphs} (as asked{slower})"
    if overlap.mode == "ranks":
        return "off", "no CUDA graphs (overlap ranks: a capture would wait for other ranks)"
    if config.adversarial.objective == "free":
        return "off", "no CUDA graphs (objective free: updates lie between its passes)"
    if overlap.mode == "streams":
        return "attack", "graph of the attack (overlap streams is slower than off without it)"
    without = "a smaller last batch of an epoch and the attack's warm-up run without"
    return "step", f"graph of the step ({without})"


def _compiled(compute: Compute, graphs: str, objects: int) -> tuple[bool, str]:
    """Whether a GPU compiles the network, and the same in words; `objects`: images of this rank."""
    if compute.compiled != "auto":
        return compute.compiled == "on", f"compiled {compute.compiled} (as asked)"
    if graphs != "step":
        return False, "not compiled (auto compiles with a graph of the step alone)"
    if compute.deterministic:
        return False, "not compiled (the compiler chooses kernels by timing them)"
    if importlib.util.find_spec("triton") is None:
        return False, "not compiled (triton is not installed)"
    if objects < MIN_IMAGES_TO_COMPILE:
        few = f"{objects:,} images a rank: a compile is earned back after {MIN_IMAGES_TO_COMPILE:,}"
        return False, f"not compiled ({few})"
    return True, "compiled"


def _trial(
    module: nn.Module, device: torch.device, shape: tuple[int, ...], compiled: bool, graph: bool, world: World
) -> tuple[dict[str, float], str]:
    """Seconds of a pass in each precision, summed over ranks; and the compiler's error, or ""."""
    failed = ""
    if compiled:
        compile_it = partial(seconds_of_a_pass, module, device, shape, compiled=True, graph=False)
        failed = compiler_failure(compile_it)
        failed = next((text for text in group.gather_texts(failed, world) if text), "")
    took = seconds_of_a_pass(module, device, shape, compiled=compiled and not failed, graph=graph)
    ranks = [json.loads(text or "") for text in group.gather_texts(json.dumps(took), world)]
    torch.cuda.empty_cache()
    return {name: sum(rank[name] for rank in ranks) for name in took}, failed
