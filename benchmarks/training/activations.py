"""A training step and the pass of an attack with plain and with fused activations, in turn.

    attack      forward pass and input gradient of the attacked objects, one step of PGD
    step        the whole training step, with PGD-3 on half of the objects, and the update

Neither is compiled: the compiler fuses in its own way, and `hpcphotoz.models.layers.fuse_activations` counts
for eager passes on a GPU alone. An attack is a replayed CUDA graph there, a step has its gradients in one.
`ratio_plain` is how many times as long the plain form takes. Before anything is timed, the gradients of the
images and of all parameters are compared, in float32 and in the precision that is timed: where one differs by
more than rounding, there are no figures.
"""

import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_kernels import timed
from benchmarks.harness import Benchmark, Times, in_turn, middle, ratio, rounds, spread
from benchmarks.training.passes import BATCH, Passes
from benchmarks.training.steps import assembled
from benchmarks.training.train_runs import FRACTION, STEPS
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.models.layers import fuse_activations

NETWORKS = ("inception", "cnn")  # the compact network has no such layers
PRECISIONS = ("tf32", "bf16")
FORMS = ("plain", "fused")
# Largest difference of a tensor's gradient, of its norm. Rounding makes 1e-5 in float32 and up to 0.16 in
# bfloat16 (16 images on two cores), where either form is as far from float32: only the comparison in float32
# is strict. A term that is left out, or has another sign, makes about 1.
APART = {"fp32": 1e-3, "tf32": 0.1, "bf16": 0.3}


def configured(network: str, precision: str, device: torch.device) -> Config:
    """The configuration of a step that is not compiled, on a GPU with a graph.

    Args:
        network: by name.
        precision: of all its passes.
        device: where.
    """
    graphs = "step" if device.type == "cuda" else "off"
    return configure(
        "benchmark",
        **{"name": network, "precision": precision, "compiled": "off", "graphs": graphs},
        **{"fraction": FRACTION, "steps": STEPS},
    )


def measured(network: str, precision: str, size: int, device: torch.device, repeat: int) -> dict[str, Any]:
    """Figures of both forms.

    Args:
        network: by name.
        precision: of all its passes.
        size: objects a step.
        device: where.
        repeat: rounds.

    Returns:
        speed: the options; off, by precision, the largest difference of a gradient between the forms, of its
        norm; "attack" and "step", the figures of `figures`.

    Raises:
        ValueError: a gradient differs by more than `APART`.
    """
    config = configured(network, precision, device)
    components, rank_batch = assembled(config, size, device)[1:]
    passes = Passes(components, rank_batch, compiled=False)
    exact = replace(components.compute, training=None, attack=None, tf32=False, attack_tf32=False)
    in_float32 = replace(passes, components=replace(components, compute=exact))
    off = {"fp32": difference(in_float32, APART["fp32"]), precision: difference(passes, APART[precision])}
    found = {"speed": components.compute.facts(), "batch": size, "off": off}
    del components, passes, in_float32
    steps, both = {}, {}
    for form in FORMS:
        step, components, rank_batch = assembled(config, size, device)
        fuse_activations(components.module, on=form == "fused")
        steps[form], both[form] = step, Passes(components, rank_batch, compiled=False)
    with ExitStack() as stack:
        attacks = {
            form: timed(stack.enter_context(passes.attack(compiled=False)), device)
            for form, passes in both.items()
        }
        found["attack"] = figures(rounds(attacks, repeat))
    found["step"] = figures(in_turn(steps, repeat))
    return found


def difference(passes: Passes, largest: float) -> float:
    """The largest difference of a gradient between the forms, of its norm; the network is left plain.

    Args:
        passes: of a network.
        largest: that is allowed.

    Raises:
        ValueError: it is larger.
    """
    plain, fused = (_gradients(passes, form == "fused") for form in FORMS)
    fuse_activations(passes.components.module, on=False)
    off = 0.0
    for name, wanted in plain.items():
        smallest = torch.finfo(wanted.dtype).tiny
        apart = float((fused[name] - wanted).norm() / wanted.norm().clamp(min=smallest))
        if not apart <= largest:
            raise ValueError(f"the gradient of {name} is off by {apart:.2g} of its norm; no ratio is given")
        off = max(off, apart)
    return off


def _gradients(passes: Passes, fused: bool) -> dict[str, Tensor]:
    """Copies of the gradients of the images, in an attack, and of all parameters, in training, by name."""
    module = passes.components.module
    fuse_activations(module, on=fused)
    with passes.attack(compiled=False) as attack:
        found = {"images": attack()[0].clone()}
    passes.both(compiled=False)()
    return found | {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def figures(times: Times) -> dict[str, Any]:
    """Figures of what takes so many seconds, by form and round."""
    compared = ratio(times, "plain", "fused")
    return {
        "us": {form: spread([1e6 * t for t in times[form]]) for form in FORMS},
        "ratio_plain": middle(compared),
        "ratio_per_round": {"ratio_plain": compared},
    }


def add_activations(networks: Sequence[str], repeat: int, device: torch.device, benchmark: Benchmark) -> None:
    """Add, by network and precision, the figures of `measured`, for those of `NETWORKS`; print them."""
    found: dict[str, dict[str, Any]] = dict(benchmark.figures.get("activations", {}))
    heads = f"{'plain ms':>9s} {'fused ms':>9s} {'ratio':>6s}"
    print(f"\n{'network':10s} {'precision':9s} {'activations':11s} {heads}", flush=True)
    for network in networks:
        for precision in PRECISIONS if network in NETWORKS else ():
            one = benchmark.earlier("activations", network, precision)
            if one is None:
                name, size = f"activations, {network}, {precision}", BATCH[device.type]
                one = benchmark.attempt(name, measured, network, precision, size, device, repeat)
            if device.type == "cuda":
                gc.collect()  # a step lies in cycles
                torch.cuda.empty_cache()
            if one is not None:
                found[network] = {**found.get(network, {}), precision: one}
                show(network, precision, one)
                benchmark.add(activations=found)


def show(network: str, precision: str, found: Mapping[str, Any]) -> None:
    """Print a line for the attack and one for the step."""
    for name in ("attack", "step"):
        plain, fused = (1e-3 * found[name]["us"][form]["median"] for form in FORMS)
        three = f"{plain:9.3f} {fused:9.3f} {found[name]['ratio_plain']:6.2f}"
        print(f"{network:10s} {precision:9s} {name:11s} {three}", flush=True)
