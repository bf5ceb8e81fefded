"""Training steps on one small rank batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.adversaries import StepAttack
from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.objectives import Losses, TrainingObjective
from hpcphotoz.training.overlap.streams import AdversarySource, NoOverlap
from hpcphotoz.training.step import Step

N, SIZE = 11, 13  # this rank's slice of a global batch


BINS = RedshiftBins(20, 0.0, 0.4)


CPU = torch.device("cpu")


def configured(objective: str = "replace", fraction: float = 0.4, **options: Any) -> Config:
    usual = {"bins": 20, "precision": "fp32", "augment": False, "eps": 0.2, "steps": 3}
    return configure("test", **{**usual, "objective": objective, "fraction": fraction, **options})


def batch(n: int = N) -> Batch:
    g = torch.Generator().manual_seed(5)
    return Batch(
        images=torch.randn(n, 3, 8, 8, generator=g),
        z_spec=0.4 * torch.rand(n, generator=g),
        ebv=torch.zeros(n),
        object_id=torch.arange(100, 100 + n),
        sky_sigma=0.5 + torch.rand(n, 3, generator=g),
        position=torch.arange(1, n + 1),
        size=SIZE,
        index=0,
    )


def stepper(
    config: Config, module: nn.Module, source: type[NoOverlap] = NoOverlap, rate: float = 0.0
) -> tuple[Step, StepAttack]:
    compute = compute_options(config.compute, CPU)
    generate = StepAttack(module, config, BINS, compute)
    adversaries: AdversarySource = source(generate)
    optimiser = torch.optim.SGD(module.parameters(), lr=rate)
    return Step(module, optimiser, adversaries, TrainingObjective(config, BINS), compute), generate


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


class Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators whose names have one of some parts."""

    def __init__(self, *parts: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts = parts
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(part in str(func) for part in self._parts):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def record_of(module: nn.Module) -> Callable[..., tuple[Callable[[], object], Losses]]:
    """A stand-in for the capture of a CUDA graph: like one, it keeps outputs and gradients in one place."""

    def record(call: Callable[[], Losses], device: torch.device) -> tuple[Callable[[], object], Losses]:
        out = call()
        kept = [p.grad for p in module.parameters()]

        def replay() -> None:
            for old, new in zip(out, call(), strict=True):
                old.copy_(new)
            for gradient, parameter in zip(kept, module.parameters(), strict=True):
                assert gradient is not None and parameter.grad is not None
                gradient.copy_(parameter.grad)

        return replay, out

    return record
