"""The passes of a training step, each alone: seconds, bytes, and the fraction of the bandwidth limit.

    attack                  forward pass and input gradient of the attacked objects, one step of PGD
    training forward        of the whole batch, with the loss
    training backward       gradients of all weights
    optimiser               guarded update of the weights

`fraction_of_limit` is the time in which a copy would move the bytes of a pass, over the pass's time: bytes as
`traffic` counts them, and the rate of `copy_` of a tensor larger than any cache, timed in turn with the pass.
A backward pass takes what forward and backward pass take together, less the forward pass. On a GPU a pass is
a replayed CUDA graph, except the optimiser, which the host launches in training too.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_kernels import timed
from benchmarks.harness import Benchmark, on_host_clock, rounds, spread
from benchmarks.training.galaxies import SKY, STAMP
from benchmarks.training.steps import assembled
from benchmarks.training.traffic import bytes_moved, bytes_of_update
from benchmarks.training.train_runs import FRACTION, STEPS
from hpcphotoz import attacks
from hpcphotoz.attacks.ball import attack_batch
from hpcphotoz.attacks.passes.gradient import image_loss_of
from hpcphotoz.compute.compiler import compiled as through_compiler
from hpcphotoz.compute.precision import tf32
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.models.build import build
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.compute import choose_compute, compute_options
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.optimisation.freezing import training_mode
from hpcphotoz.training.optimisation.guarded_update import GuardedUpdate
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.world import World

BATCH = {"cuda": 256, "cpu": 32}  # objects a step
COPIED = {"cuda": 2**30, "cpu": 2**28}  # bytes of the tensor that is copied
PASSES = ("attack", "training forward", "training backward", "optimiser")


@dataclass(frozen=True)
class Passes:
    """The passes of one step of a network, as callables that return what they are for."""

    components: TrainingComponents
    rank_batch: RankBatch
    compiled: bool

    @contextmanager
    def attack(self, compiled: bool) -> Iterator[Callable[[], list[Tensor]]]:
        """Yields the pass of an attack: forward pass and input gradient of the attacked objects."""
        c, rows = self.components, self.rank_batch.attacked
        images, ebv, z = (
            t[rows] for t in (self.rank_batch.images, self.rank_batch.ebv, self.rank_batch.z_spec)
        )
        batch = attack_batch(images, ebv, z, images.new_ones(images.shape[1]), None, 1, None)
        how = replace(c.compute.passes, compiled=compiled)
        with image_loss_of(c.module, attacks.cross_entropy(c.bins), c.device, how) as image_loss:
            yield lambda: [image_loss.gradient(batch.images, batch).grad]

    def forward(self, compiled: bool) -> Callable[[], Tensor]:
        """The forward pass of training, which returns the loss."""
        c = self.components
        objective = TrainingObjective(c.config, c.bins)
        module = training_mode(c.module)
        model = through_compiler(module, c.device) if compiled else module
        images = self.rank_batch.images[self.rank_batch.attacked]
        (whole,) = objective.together(self.rank_batch, images)

        def forward() -> Tensor:
            with tf32(c.compute.tf32):
                with c.compute.autocast(c.device):
                    logits = model(*objective.inputs(whole))
                return objective.loss(logits, whole)[0]

        return forward

    def backward(self, loss: Tensor) -> list[Tensor]:
        """The backward pass of training, which returns the gradients."""
        with tf32(self.components.compute.tf32):
            loss.backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in self.components.module.parameters() if p.grad is not None]

    def both(self, compiled: bool) -> Callable[[], list[Tensor]]:
        """Forward and backward pass; gradients are made anew, not added to."""
        forward = self.forward(compiled)

        def both() -> list[Tensor]:
            self.components.optimiser.zero_grad()
            return self.backward(forward())

        return both

    def bytes(self) -> dict[str, int]:
        """Bytes that each pass must move, counted on eager ones."""
        c = self.components
        with self.attack(compiled=False) as attack:
            found = {"attack": bytes_moved(attack)}
        forward = self.forward(compiled=False)
        found["training forward"] = bytes_moved(lambda: [forward()])
        c.optimiser.zero_grad()
        loss = forward()
        found["training backward"] = bytes_moved(lambda: self.backward(loss))
        self.update()
        found["optimiser"] = bytes_of_update(c.optimiser)
        return found

    def update(self) -> None:
        """Update the weights with the gradients that are there."""
        self._guard.update()

    @cached_property
    def _guard(self) -> GuardedUpdate:
        c = self.components
        return GuardedUpdate(c.module, c.optimiser, c.config.optimiser.clip_norm)


def as_trained(network: str, compiled: str, size: int, device: torch.device) -> Config:
    """The configuration of a long run whose options `hpcphotoz train` chooses for this device.

    Args:
        network: by name.
        compiled: `compute.compiled`, "on" or "off".
        size: objects a step.
        device: where.
    """
    graphs = "step" if device.type == "cuda" else "off"
    config = configure(
        "benchmark",
        **{"name": network, "compiled": compiled, "graphs": graphs},
        **{"fraction": FRACTION, "steps": STEPS},
    )
    module = build(config.model, stamp=STAMP, scale=tuple(10 * s for s in SKY))
    module = compute_options(config.compute, device).placed(module, device)
    chosen = choose_compute(config, World(), module, device, (size, len(SKY), STAMP, STAMP), objects=0)
    return config.model_copy(update={"compute": chosen.compute})


def measured(config: Config, size: int, device: torch.device, repeat: int) -> dict[str, Any]:
    """Figures of the passes of a step.

    Args:
        config: of the run, with precision and compiler chosen.
        size: objects a step.
        device: where.
        repeat: rounds.

    Returns:
        speed: the options; copy_gb_per_s; and by pass of `PASSES` the figures of `figures`.
    """
    components, rank_batch = assembled(config, size, device)[1:]
    passes = Passes(components, rank_batch, components.compute.compiled)
    moved, copied = passes.bytes(), COPIED[device.type]
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> object:
        return target.copy_(source)

    with passes.attack(passes.compiled) as attack:
        times = rounds({"copy": timed(copy, device), "attack": timed(attack, device)}, repeat)
    found = {"attack": figures(moved["attack"], times["attack"], times["copy"], copied)}
    rivals = {
        "copy": timed(copy, device),
        "training forward": timed(passes.forward(passes.compiled), device),
        "both": timed(passes.both(passes.compiled), device),
    }
    times = rounds(rivals, repeat)
    times["training backward"] = [
        a - b for a, b in zip(times["both"], times["training forward"], strict=True)
    ]
    passes.both(compiled=False)()  # gradients outside the memory of a graph
    times |= rounds({"optimiser": on_host_clock(passes.update)}, repeat)
    for name in PASSES[1:]:
        found[name] = figures(moved[name], times[name], times["copy"], copied)
    rates = [2 * copied / t for t in times["copy"]]
    copied_at = spread([1e-9 * rate for rate in rates])
    return {"speed": components.compute.facts(), "batch": size, "copy_gb_per_s": copied_at, **found}


def figures(moved: int, seconds: list[float], copy_s: list[float], copied: int) -> dict[str, Any]:
    """Figures of a pass.

    Args:
        moved: bytes that it must move.
        seconds: of the pass, by round.
        copy_s: of a copy in the same rounds.
        copied: bytes that the copy reads, and writes.
    """
    limits = [moved * t / (2 * copied) for t in copy_s]
    return {
        "us": spread([1e6 * t for t in seconds]),
        "bytes": moved,
        "gb_per_s": spread([1e-9 * moved / t for t in seconds]),
        "fraction_of_limit": spread([limit / t for limit, t in zip(limits, seconds, strict=True)]),
    }


def add_passes(networks: Sequence[str], repeat: int, device: torch.device, benchmark: Benchmark) -> None:
    """Add, by network and form ("eager", on a GPU "compiled" too), the figures of `measured`; print them."""
    found: dict[str, dict[str, Any]] = dict(benchmark.figures.get("passes", {}))
    heads = f"{'ms':>9s} {'GB':>8s} {'GB/s':>8s} {'of limit':>9s}"
    print(f"\n{'network':10s} {'form':9s} {'pass':18s} {heads}", flush=True)
    for network in networks:
        for form in ["compiled", "eager"] if device.type == "cuda" else ["eager"]:
            one = benchmark.earlier("passes", network, form)
            if one is None:
                one = benchmark.attempt(
                    f"passes, {network}, {form}", _of_network, network, form, repeat, device
                )
            if device.type == "cuda":
                gc.collect()  # a step lies in cycles
                torch.cuda.empty_cache()
            if one is not None:
                found[network] = {**found.get(network, {}), form: one}
                show(network, form, one)
                benchmark.add(passes=found)


def _of_network(network: str, form: str, repeat: int, device: torch.device) -> dict[str, Any]:
    size = BATCH[device.type]
    config = as_trained(network, "on" if form == "compiled" else "off", size, device)
    return measured(config, size, device, repeat)


def show(network: str, form: str, found: Mapping[str, Any]) -> None:
    """Print a line for each pass."""
    for name in PASSES:
        one = found[name]
        ms, gb, rate = 1e-3 * one["us"]["median"], 1e-9 * one["bytes"], one["gb_per_s"]["median"]
        part = one["fraction_of_limit"]["median"]
        print(f"{network:10s} {form:9s} {name:18s} {ms:9.3f} {gb:8.3f} {rate:8.1f} {part:9.3f}", flush=True)
