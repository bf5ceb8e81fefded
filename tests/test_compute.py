"""Attacks on a whole dataset: compiled and as CUDA graphs in long work on a GPU, plainly elsewhere."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hpcphotoz.attacks import Passes
from hpcphotoz.attacks.graph import Graphs, kind_of
from hpcphotoz.config import Attack
from hpcphotoz.evaluation import compute
from hpcphotoz.evaluation.compute import EARNS_COMPILE, DatasetAttack
from tests.toys import Toy

BATCH = 4


class Perturb:
    """Notes the passes of each attack; fails where they are compiled, if it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, compiler_fails: bool = False) -> None:
        self.passes: list[Passes] = []
        self._fails = compiler_fails
        monkeypatch.setattr(compute, "perturb", self)
        monkeypatch.setattr(compute, "_compiles", lambda network: True)

    def __call__(self, *given: Any, passes: Passes, **options: Any) -> Tensor:
        self.passes.append(passes)
        if passes.compiled and self._fails:
            raise RuntimeError("no compiler\nand a long tail")
        return torch.zeros(BATCH)


def attack(made: DatasetAttack, n: int = BATCH, eps: float = 0.1) -> None:
    tensor = {name: torch.zeros(n) for name in ("images", "ebv", "sky_sigma", "object_id")}
    made(tensor, torch.zeros(n), Attack(eps=eps), 0)


def test_long_work_on_a_gpu_is_compiled_and_one_graph_serves_all_epsilons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = Perturb(monkeypatch)
    made = DatasetAttack(Toy(), "bf16", BATCH, EARNS_COMPILE)
    attack(made)
    attack(made, eps=0.5)
    attack(made, n=3)  # the last of a shard
    assert [passes.compiled for passes in seen.passes] == [True, True, False]
    assert [passes.replay is not None for passes in seen.passes] == [True, True, False]
    assert all(passes.autocast is torch.bfloat16 for passes in seen.passes)
    assert kind_of(Attack(eps=0.1)) == kind_of(Attack(eps=0.5)) != kind_of(Attack(steps=9))
    assert isinstance(made._graphs, Graphs)


def test_short_work_and_work_on_a_cpu_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compute._compiles(Toy())
    seen = Perturb(monkeypatch)
    attack(DatasetAttack(Toy(), "fp32", BATCH, EARNS_COMPILE - 1))
    assert seen.passes == [Passes(tf32=False)]


def test_a_compiler_that_fails_is_said_once_and_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Perturb(monkeypatch, compiler_fails=True)
    made = DatasetAttack(Toy(), "tf32", BATCH, EARNS_COMPILE)
    attack(made)
    attack(made)
    assert [passes.compiled for passes in seen.passes] == [True, False, False]
    assert all(passes.tf32 for passes in seen.passes)
    assert caplog.text.count("failed here (RuntimeError: no compiler): attacks run without either") == 1
