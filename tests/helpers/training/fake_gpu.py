"""A GPU for tests of the choice of precision, graphs and compilation: its passes take given times."""

from typing import Any

import pytest
import torch
from torch import nn

from hpcphotoz.compute import precision
from hpcphotoz.training import compute
from hpcphotoz.training.compute import MIN_IMAGES_TO_COMPILE, ComputeChoice, choose_compute
from hpcphotoz.world import World
from tests.helpers.training.steps import configured

GPU = torch.device("cuda", 0)
ONE_RANK = World(0, 1, 0, 1, "none")


class FakeGPU:
    """Replaces the timed passes: seconds in each precision, eager and compiled, or an error of the compiler.

    Attributes:
        eager, compiled: seconds of a pass, by precision.
        compiler_fails: whether compiled passes raise.
        calls: of each timed pass, whether it was compiled and whether captured as a graph.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        self.eager, self.compiled = {"tf32": 0.031, "bf16": 0.0382}, {"tf32": 0.02, "bf16": 0.015}
        self.compiler_fails, self.calls = False, list[tuple[bool, bool]]()
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device=None: "NVIDIA H200")
        for module in (compute, precision):
            monkeypatch.setattr(module, "seconds_of_a_pass", self._seconds)

    def _seconds(
        self, module: nn.Module, device: torch.device, shape: tuple[int, ...], *, compiled: bool, graph: bool
    ) -> dict[str, float]:
        self.calls.append((compiled, graph))
        if compiled and self.compiler_fails:
            raise RuntimeError("Failed to find C compiler\nPlease specify via CC")
        return self.compiled if compiled else self.eager

    def settle(
        self, objects: int = MIN_IMAGES_TO_COMPILE, begun: str | None = None, **training: Any
    ) -> ComputeChoice:
        asked = configured(**{"precision": "auto", **training})
        return choose_compute(asked, ONE_RANK, nn.Linear(1, 1), GPU, (64, 5, 64, 64), objects, begun)
