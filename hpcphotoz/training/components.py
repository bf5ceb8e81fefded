"""The parts of a run put together: what takes its steps, where attacked images come from, what both cost."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.compute.compiler import compiled as through_compiler
from hpcphotoz.compute.precision import time_call
from hpcphotoz.config import Config
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.adversaries import StepAttack
from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.overlap.exchange import AttackerEndpoint, ExchangeTopology, LearnerEndpoint, Waiting
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.overlap.streams import AdversarySource, NoOverlap, SerialOverlap, StreamOverlap
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.step import Step
from hpcphotoz.training.step_free import FreeStep
from hpcphotoz.training.step_graph import GraphedStep

TrainStep = Step | FreeStep | GraphedStep


@dataclass(frozen=True)
class TrainingComponents:
    """What steps are made of."""

    module: nn.Module  # bare, on the device
    optimiser: torch.optim.Optimizer
    config: Config
    bins: RedshiftBins
    compute: ComputeOptions
    device: torch.device
    timers: Timers

    def step_attack(self) -> StepAttack:
        """The attack."""
        return StepAttack(self.module, self.config, self.bins, self.compute, self.timers)

    def attack_eagerly(self, module: nn.Module, batch: RankBatch) -> Tensor:
        """The same by another copy of the network, launched one by one."""
        compute = replace(self.compute, graphs="off", compiled=False)
        return StepAttack(module, self.config, self.bins, compute)(batch)

    def adversaries(self) -> AdversarySource:
        """Where attacked images come from on a rank that makes its own."""
        generate, overlap = self.step_attack(), self.config.overlap.mode
        if overlap != "streams" or not self.config.adversarial.fraction:
            return NoOverlap(generate)
        return StreamOverlap(generate, self.device) if self.device.type == "cuda" else SerialOverlap(generate)

    def exchange(
        self, role: RankRole, rank: int, loader: RankLoader, first: int, last: int, waiting: Waiting
    ) -> LearnerEndpoint | AttackerEndpoint:
        """This rank's end of the exchange between learners and attackers.

        Args:
            role: its part.
            rank: among all.
            loader: its data.
            first, last: steps of this process.
            waiting: notes for what the rank waits.
        """
        assert role.split is not None
        config, header = self.config, loader.train.manifest.header
        topology = ExchangeTopology(
            role.split,
            rank,
            config.adversarial.fraction,
            config.overlap,
            last,
            loader.global_batch_size,
            role.weights_group,
        )
        topology.connect_peers(self.device)
        end = AttackerEndpoint if role.is_attacker else LearnerEndpoint
        shape = (len(header.bands), header.stamp, header.stamp)
        return end(topology, self.module, shape, self.device, first, waiting)

    def build_step(self, adversaries: AdversarySource, role: RankRole) -> TrainStep:
        """What takes steps."""
        learners, objective = role.world.size, TrainingObjective(self.config, self.bins)
        module = self.module.train()
        if self.compute.graphs == "step":
            return self._graphed(module, objective, learners, role)
        model = self._wrapped(module, role)
        if self.config.adversarial.objective == "free":
            return FreeStep(
                model, self.optimiser, self.config, self.bins, self.compute, learners, self.timers
            )
        return Step(model, self.optimiser, adversaries, objective, self.compute, learners, self.timers)

    def _graphed(
        self, module: nn.Module, objective: TrainingObjective, learners: int, role: RankRole
    ) -> GraphedStep:
        """The step of the bare network as a graph, through the compiler if that is asked for."""
        compiled, eager = None, replace(self, compute=replace(self.compute, compiled=False))
        if self.compute.compiled:
            fast = through_compiler(module, self.device)
            compiled = Step(fast, self.optimiser, self.adversaries(), objective, self.compute, learners)
        step = Step(module, self.optimiser, eager.adversaries(), objective, eager.compute, learners)
        warmup_end, optimiser = self.config.adversarial.warmup_end, self.optimiser
        return GraphedStep(
            step, module, optimiser, warmup_end, learners, role.subgroup, self.timers, compiled
        )

    def costs(self, batch: RankBatch) -> tuple[float, float]:
        """Seconds to attack, and to train on, a rank's share of a batch; nothing is updated."""
        generate, objective = self.step_attack(), TrainingObjective(self.config, self.bins)
        ready = NoOverlap(lambda batch: batch.images[batch.attacked])
        step = Step(self.module.train(), self.optimiser, ready, objective, self.compute)
        attack = time_call(lambda: generate(batch), self.device)
        train = time_call(lambda: step.gradients(batch), self.device)
        self.optimiser.zero_grad()
        return attack, train

    def _wrapped(self, module: nn.Module, role: RankRole) -> nn.Module:
        if self.compute.compiled:
            module = through_compiler(module, self.device)
        if role.world.size == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            process_group=role.subgroup,
            bucket_cap_mb=self.config.compute.bucket_mb,
            gradient_as_bucket_view=True,
        )
