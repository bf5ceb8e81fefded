"""Network, optimiser, attack and step of a run, put together for one device."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from hpcphotoz.compute.compiler import compiled as through_compiler
from hpcphotoz.compute.precision import time_call
from hpcphotoz.compute.statistics import buffers_kept, running_statistics
from hpcphotoz.config import Config
from hpcphotoz.data.order import ORDER
from hpcphotoz.data.stream.mixture import MixedStream
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import bins_of, build, load_weights
from hpcphotoz.models.factory import NetworkSource, source_of
from hpcphotoz.training.adversaries import StepAttack
from hpcphotoz.training.compute import ComputeOptions, compute_options
from hpcphotoz.training.distributed.statistics import agree_on_statistics
from hpcphotoz.training.exact.deterministic import seed_step
from hpcphotoz.training.exact.parallel import in_parallel
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.optimisation.average import WeightAverage
from hpcphotoz.training.optimisation.freezing import freeze, gathered_statistics, training_mode
from hpcphotoz.training.optimisation.optimiser import make_optimiser
from hpcphotoz.training.optimisation.schedules import learning_rate
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.overlap.streams import AdversarySource, NoOverlap, SerialOverlap, StreamOverlap
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.checkpoint import State
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.step import Step, StepOutcome
from hpcphotoz.training.step_free import FreeStep
from hpcphotoz.training.step_graph import GraphedStep

TrainStep = Step | FreeStep | GraphedStep


@dataclass(frozen=True)
class TrainingComponents:
    """Network, optimiser and options of a run on one device, and what is built from them."""

    module: nn.Module  # bare, on the device
    optimiser: torch.optim.Optimizer
    config: Config
    bins: RedshiftBins
    scale: tuple[float, ...]  # (B,) nMgy: softening of the asinh normalisation
    compute: ComputeOptions
    device: torch.device
    timers: Timers
    source: NetworkSource | None = None  # where the factory of a user's network is
    average: WeightAverage | None = None  # of the weights; None: there is none
    origin: Mapping[str, Any] | None = None  # facts of the run whose weights were the start; None: random
    schedule_epochs: int | None = None  # over which the learning rate's schedule is laid; None: all

    @classmethod
    def create(
        cls,
        config: Config,
        stamp: int,
        sky_sigma: Sequence[float],
        device: torch.device,
        timers: Timers,
        scale: tuple[float, ...] | None = None,
    ) -> Self:
        """Make a new network, initialised from `run.seed`, and its optimiser.

        Args:
            config: every option of the run.
            stamp: pixels a side of the images.
            sky_sigma: (B,) nMgy, typical sky noise of the dataset.
            device, timers: where the network computes, and what times the sections of its steps.
            scale: (B,) nMgy, softening of the normalisation; None: `model.softening` times the sky noise.

        Raises:
            BadInput: a network that cannot be made, or `optimiser.freeze` names no parameter of it, or all.
        """
        # A softening of 1 sky sigma distorts the noise itself: sigma_MAD was 5 to 10 % worse than with 10.
        scale = scale or tuple(config.model.softening * sigma for sigma in sky_sigma)
        compute = compute_options(config.compute, device)
        # On the CPU, whatever the caller's default device; the caller's random state stays as it is.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(config.run.seed)
            module = build(config.model, stamp=stamp, scale=scale)
        module = compute.placed(module, device)
        freeze(module, config.optimiser.freeze)
        optimiser = make_optimiser(config.optimiser, module.parameters(), compute.fused_adam)
        decay = config.optimiser.ema_decay
        average = WeightAverage(module, decay) if decay else None
        given = config, bins_of(config.model), scale, compute, device, timers, source_of(config.model)
        return cls(module, optimiser, *given, average)

    @property
    def laid_over(self) -> int:
        """Epochs over which the schedule of the learning rate is laid."""
        return self.schedule_epochs or self.config.run.epochs

    def with_scale(self, scale: tuple[float, ...], stamp: int) -> "TrainingComponents":
        """These with a new network whose normalisation has another scale; themselves if it is theirs."""
        if scale == self.scale:
            return self
        return self.create(self.config, stamp, (), self.device, self.timers, scale)

    def state(self, sums: Tensor, stream: Stream | MixedStream, step: int) -> State:
        """What a checkpoint holds, from which `restore` continues the same loss curve.

        Args:
            sums: (9,) float64, `MetricsAccumulator.sums` since the last line of metrics.jsonl.
            stream: the training objects.
            step: number of optimiser steps taken.
        """
        header = stream.manifest.header
        return {
            "model": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": step,
            "sums": sums.clone(),
            "manifest_sha256": stream.manifest.sha256,
            "datasets_sha256": [part.manifest.sha256 for part in stream.parts],
            "lost": list(stream.census.lost),
            "order": ORDER,
            "config": self.config.model_dump(),
            "bands": list(header.bands),
            "stamp": header.stamp,
            "pixel_scale": header.pixel_scale,
            "scale": list(self.scale),
            "schedule_epochs": self.laid_over,
            **({"ema": self.average.state_dict()} if self.average else {}),
            **({"from": dict(self.origin)} if self.origin else {}),
            **({"source_sha256": self.source.sha256} if self.source else {}),
        }

    def restore(self, state: State) -> None:
        """Load a checkpoint into network and optimiser.

        Raises:
            BadInput: the factory of a user's network makes another one than that of the checkpoint.
        """
        load_weights(self.module, state["model"], f"model.name {self.config.model.name}")
        # `fused` is an option of this process, not of the one that saved. It is set before loading, because
        # it decides on which device the optimiser keeps its own `step`.
        for entry in state["optimiser"]["param_groups"]:
            entry["fused"] = self.compute.fused_adam
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average:
            self.average.load_state_dict(state["ema"])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network in evaluation mode, with its averaged weights if it has them."""
        self.module.eval()
        try:
            with self.average.in_place() if self.average else nullcontext():
                yield
        finally:
            training_mode(self.module)

    def step_attack(self) -> StepAttack:
        """The attack on the network of this run."""
        return StepAttack(self.module, self.config, self.bins, self.compute, self.timers)

    def attack_eagerly(self, module: nn.Module, batch: RankBatch) -> Tensor:
        """Attack with a copy of the network, eagerly: without compiler and CUDA graph."""
        compute = replace(self.compute, graphs="off", compiled=False)
        return StepAttack(module, self.config, self.bins, compute)(batch)

    def adversaries(self) -> AdversarySource:
        """The source of attacked images on a rank that makes its own."""
        generate, overlap = self.step_attack(), self.config.overlap.mode
        if overlap != "streams" or not self.config.adversarial.fraction:
            return NoOverlap(generate)
        if self.device.type != "cuda":
            return SerialOverlap(generate)
        if self._statistics:
            return SerialOverlap(generate, "the network has batch normalisation")
        return StreamOverlap(generate, self.device)

    def build_step(self, adversaries: AdversarySource, role: RankRole) -> TrainStep:
        """The training step: eager or as a CUDA graph, in DistributedDataParallel if several ranks train."""
        learners, objective = role.world.size, TrainingObjective(self.config, self.bins)
        module = training_mode(self.module)
        if self.compute.graphs == "step":
            return self._graphed(module, objective, learners, role)
        model = self._wrapped(module, role)
        if self.config.adversarial.objective == "free":
            given = self.config, self.bins, self.compute, learners, self.timers
            return FreeStep(model, self.optimiser, *given)
        return Step(model, self.optimiser, adversaries, objective, self.compute, learners, self.timers)

    def _graphed(
        self, module: nn.Module, objective: TrainingObjective, learners: int, role: RankRole
    ) -> GraphedStep:
        """The step of the bare network as a CUDA graph, compiled if the options say so."""
        compiled, eager = None, replace(self, compute=replace(self.compute, compiled=False))
        if self.compute.compiled:
            fast = through_compiler(module, self.device)
            compiled = Step(fast, self.optimiser, self.adversaries(), objective, self.compute, learners)
        step = Step(module, self.optimiser, eager.adversaries(), objective, eager.compute, learners)
        warmup_end, optimiser = self.config.adversarial.warmup_end, self.optimiser
        return GraphedStep(
            step, module, optimiser, warmup_end, learners, role.subgroup, self.timers, compiled
        )

    def take_step(
        self, train_step: TrainStep, batch: RankBatch, role: RankRole, schedule_steps: int
    ) -> StepOutcome:
        """Take one step on a learner; arguments as of `build_step` and `TrainingLoop`."""
        for entry in self.optimiser.param_groups:
            entry["lr"] = learning_rate(batch.step, schedule_steps, self.config.optimiser)
        self.begin_step(batch.step, role)
        outcome = train_step(batch)
        self.end_step(batch.step, role, outcome.norms)
        return outcome

    def begin_step(self, step: int, role: RankRole) -> None:
        """In deterministic mode, give a step, counted from 0, random numbers of its own on this learner."""
        if self.config.compute.deterministic:
            seed_step(self.config.run.seed, step, role.world.rank)

    def end_step(self, step: int, role: RankRole, norms: Tensor) -> None:
        """Bring statistics and averaged weights up to date after a step, on a learner.

        Args:
            step: counted from 0.
            role: of this rank.
            norms: of the step's gradients, as in `StepOutcome`: if none is finite, nothing has changed.
        """
        changed = norms.isfinite().any()
        where = changed if norms.device.type == "cuda" else None  # where the host must not wait for it
        if where is None and not changed:
            return
        agree_on_statistics(self._gathered_statistics, role, where)
        if self.average:
            with self.timers("average of the weights"):
                self.average.update(step, where)

    @cached_property
    def _statistics(self) -> list[Tensor]:
        return running_statistics(self.module)

    @cached_property
    def _gathered_statistics(self) -> list[Tensor]:
        return gathered_statistics(self.module)

    def costs(self, batch: RankBatch) -> tuple[float, float]:
        """Seconds to attack a rank batch and seconds to train on it; weights are not updated."""
        generate, objective = self.step_attack(), TrainingObjective(self.config, self.bins)
        ready = NoOverlap(lambda batch: batch.images[batch.attacked])
        step = Step(training_mode(self.module), self.optimiser, ready, objective, self.compute)
        attack = time_call(lambda: generate(batch), self.device)
        with buffers_kept(self.module):
            train = time_call(lambda: step.gradients(batch), self.device)
        self.optimiser.zero_grad()
        return attack, train

    def _wrapped(self, module: nn.Module, role: RankRole) -> nn.Module:
        if self.compute.compiled:
            module = through_compiler(module, self.device)
        if role.world.size == 1:
            return module
        # With running statistics, which `agree_on_statistics` keeps equal, nothing is left to broadcast.
        given = self.config.compute, role.world.size, role.subgroup
        return in_parallel(module, self.device, *given, broadcast_buffers=not self._statistics)
