"""All passes of a training step as one CUDA graph: one launch instead of thousands.

    batch ─ copied into the graph's batch ─► attack and passes ─► gradients ─► all-reduce ─► update

Gradients lie in the memory of the graph, and each replay overwrites them; nothing may free them. The
all-reduce is one call over all gradients after the replay, not beside the backward pass: the graph is for
small batches, for which launching the kernels takes longer than running them. Two kinds of batches run
without the graph: those of another shape (the last one of an epoch), and those of the attack's warm-up,
because a graph keeps the strength of the attack that was captured.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch import distributed as dist

from hpcphotoz.compute.capture import capture
from hpcphotoz.compute.compiler import compiler_failure
from hpcphotoz.compute.statistics import buffers_kept
from hpcphotoz.training.distributed.group import Subgroup
from hpcphotoz.training.objectives import Losses
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.step import Step, StepOutcome

Record = Callable[[Callable[[], Losses], torch.device], tuple[Callable[[], object], Losses]]
_COPIED = ("images", "ebv", "z_spec", "sky_sigma", "object_id", "attacked", "clean")
_log = logging.getLogger(__name__)


@dataclass
class GraphedStep:
    """Takes optimisation steps as `step.Step` does, with its gradients captured as a CUDA graph."""

    step: Step  # of the bare network, without DistributedDataParallel; for batches that fit no graph
    module: nn.Module
    optimiser: torch.optim.Optimizer
    warmup_end: int  # step from which the attack has its full strength; nothing is captured before
    learners: int = 1  # number of ranks that train
    subgroup: Subgroup = None  # their process group
    timers: Timers = field(default_factory=Timers)
    compiled: Step | None = None  # `step` through torch.compile: captured instead, unless the compiler fails
    record: Record = capture

    def __post_init__(self) -> None:
        self._parameters = [p for p in self.module.parameters() if p.requires_grad]
        self._replay: Callable[[], object] | None = None

    def __call__(self, batch: RankBatch) -> StepOutcome:
        """Attack, forward, backward, update."""
        # Most batches are whole: if the first one was not, a later whole one is captured in its place.
        if self._replay is None or len(batch.images) > len(self._batch.images):
            self._replay = None
            if batch.step >= self.warmup_end:
                self._capture(batch)
        self.step.guard.begin()
        if self._replay is not None and self._fits(batch):
            losses = self._replayed(batch)
        else:
            losses = self.step.gradients(batch)
        if self.learners > 1:
            with self.timers("all-reduce"):
                self._average()
        with self.timers("optimiser"):
            norm = self.step.guard.update()
        return StepOutcome(losses, norm[None])

    def _capture(self, batch: RankBatch) -> None:
        epoch = torch.zeros((), dtype=torch.int64, device=batch.images.device)
        own = {name: getattr(batch, name).clone(memory_format=torch.preserve_format) for name in _COPIED}
        self._batch = replace(batch, **own, epoch=epoch)
        with buffers_kept(self.module):
            captured = self._step_to_capture()
        with buffers_kept(self.module):  # a capture begins with passes that warm up
            self._replay, self._out = self.record(
                lambda: captured.gradients(self._batch), batch.images.device
            )
        self._gradients = [_gradient_of(p) for p in self._parameters]

    def _step_to_capture(self) -> Step:
        """The step to capture: the compiled one if it compiles and runs."""
        if self.compiled is None:
            return self.step
        compiled, batch = self.compiled, self._batch
        if failed := compiler_failure(lambda: compiled.gradients(batch)):
            _log.warning("torch.compile failed here (%s): the step runs as a CUDA graph without it", failed)
            self.compiled = None
        return self.compiled or self.step

    def _replayed(self, batch: RankBatch) -> Losses:
        assert self._replay is not None and isinstance(self._batch.epoch, Tensor)
        for name in _COPIED:
            getattr(self._batch, name).copy_(getattr(batch, name), non_blocking=True)
        self._batch.epoch.fill_(batch.epoch)
        with self.timers("attack and passes"):
            self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # an eager step may have freed it
        return Losses(*(tensor.clone() for tensor in self._out))

    def _fits(self, batch: RankBatch) -> bool:
        ours = self._batch
        same = all(getattr(ours, name).shape == getattr(batch, name).shape for name in _COPIED)
        return same and ours.size == batch.size

    def _average(self) -> None:
        gradients = [_gradient_of(p) for p in self._parameters]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat, group=self.subgroup)
        flat /= self.learners
        parts: Sequence[Tensor] = torch.split(flat, [g.numel() for g in gradients])
        torch._foreach_copy_(
            gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]
        )


def _gradient_of(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
