"""The parts of a run put together: what takes its steps, where attacked images come from, what both cost."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.attacks.compiler import compiled as through_compiler
from hpcphotoz.attacks.precision import timed
from hpcphotoz.config import Config
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.cast import Cast
from hpcphotoz.training.exchange import FromAttackers, Link, ToLearners, Waiting
from hpcphotoz.training.free import FreeStep
from hpcphotoz.training.generate import Generator
from hpcphotoz.training.graphed import GraphedStep
from hpcphotoz.training.objective import Objective
from hpcphotoz.training.overlap import Adversaries, Off, Serial, Streams
from hpcphotoz.training.phases import Phases
from hpcphotoz.training.shares import Shares
from hpcphotoz.training.speed import Speed
from hpcphotoz.training.step import Step
from hpcphotoz.training.work import Work

Taker = Step | FreeStep | GraphedStep


@dataclass(frozen=True)
class Assembly:
    """What steps are made of."""

    module: nn.Module  # bare, on the device
    optimiser: torch.optim.Optimizer
    config: Config
    bins: RedshiftBins
    speed: Speed
    device: torch.device
    phases: Phases

    def generator(self) -> Generator:
        """The attack."""
        return Generator(self.module, self.config, self.bins, self.speed, self.phases)

    def attack_by(self, module: nn.Module, work: Work) -> Tensor:
        """The same by another copy of the network, launched one by one."""
        speed = replace(self.speed, graphs="off", compiled=False)
        return Generator(module, self.config, self.bins, speed)(work)

    def adversaries(self) -> Adversaries:
        """Where attacked images come from on a rank that makes its own."""
        generate, overlap = self.generator(), self.config.training.overlap
        if overlap != "streams" or not self.config.attack.fraction:
            return Off(generate)
        return Streams(generate, self.device) if self.device.type == "cuda" else Serial(generate)

    def exchange(
        self, cast: Cast, rank: int, shares: Shares, first: int, last: int, waiting: Waiting
    ) -> FromAttackers | ToLearners:
        """This rank's end of the exchange between learners and attackers.

        Args:
            cast: its part.
            rank: among all.
            shares: its data.
            first, last: steps of this process.
            waiting: notes for what the rank waits.
        """
        assert cast.split is not None
        config, header = self.config, shares.train.manifest.header
        link = Link(
            cast.split, rank, config.attack.fraction, config.training, last, shares.size_of, cast.weights
        )
        link.greet(self.device)
        end = ToLearners if cast.attacks else FromAttackers
        shape = (len(header.bands), header.stamp, header.stamp)
        return end(link, self.module, shape, self.device, first, waiting)

    def taker(self, adversaries: Adversaries, cast: Cast) -> Taker:
        """What takes steps."""
        learners, objective = cast.world.size, Objective(self.config, self.bins)
        module = self.module.train()
        if self.speed.graphs == "step":
            return self._graphed(module, objective, learners, cast)
        model = self._wrapped(module, cast)
        if self.config.training.objective == "free":
            return FreeStep(model, self.optimiser, self.config, self.bins, self.speed, learners, self.phases)
        return Step(model, self.optimiser, adversaries, objective, self.speed, learners, self.phases)

    def _graphed(self, module: nn.Module, objective: Objective, learners: int, cast: Cast) -> GraphedStep:
        """The step of the bare network as a graph, through the compiler if that is asked for."""
        compiled, eager = None, replace(self, speed=replace(self.speed, compiled=False))
        if self.speed.compiled:
            fast = through_compiler(module, self.device)
            compiled = Step(fast, self.optimiser, self.adversaries(), objective, self.speed, learners)
        step = Step(module, self.optimiser, eager.adversaries(), objective, eager.speed, learners)
        training, optimiser = self.config.training, self.optimiser
        return GraphedStep(step, module, optimiser, training, learners, cast.among, self.phases, compiled)

    def costs(self, work: Work) -> tuple[float, float]:
        """Seconds to attack, and to train on, a rank's share of a batch; nothing is updated."""
        generate, objective = self.generator(), Objective(self.config, self.bins)
        ready = Off(lambda work: work.images[work.attacked])
        step = Step(self.module.train(), self.optimiser, ready, objective, self.speed)
        attack = timed(lambda: generate(work), self.device)
        train = timed(lambda: step.gradients(work), self.device)
        self.optimiser.zero_grad()
        return attack, train

    def _wrapped(self, module: nn.Module, cast: Cast) -> nn.Module:
        if self.speed.compiled:
            module = through_compiler(module, self.device)
        if cast.world.size == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            process_group=cast.among,
            bucket_cap_mb=self.config.training.bucket_mb,
            gradient_as_bucket_view=True,
        )
