"""Attacks and PDFs of a whole dataset are compiled and captured for long work on a GPU, and only there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from hpcphotoz.attacks import Passes, perturb
from hpcphotoz.attacks.passes.cuda_graph import AttackGraphs, graph_key
from hpcphotoz.config import Attack
from hpcphotoz.evaluation import inference
from hpcphotoz.evaluation.adversarial_dataset import write_adversarial_dataset
from hpcphotoz.evaluation.batches import to_tensors
from hpcphotoz.evaluation.inference import (
    MIN_FORWARDS_TO_COMPILE,
    MIN_GRADIENTS_TO_COMPILE,
    DatasetAttack,
    DatasetForward,
)
from hpcphotoz.evaluation.robustness import evaluate
from hpcphotoz.predict import predict
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.networks import VIEW, CroppedNetwork, StubNetwork

BATCH = 4


class Perturb:
    """Replaces `perturb` and records the passes of each attack; raises for compiled ones on request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, compiler_fails: bool = False) -> None:
        self.passes: list[Passes] = []
        self._fails = compiler_fails
        monkeypatch.setattr(inference, "perturb", self)
        monkeypatch.setattr(inference, "_can_compile", lambda network: True)

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
    made = DatasetAttack(StubNetwork(), "bf16", BATCH, MIN_GRADIENTS_TO_COMPILE)
    attack(made)
    attack(made, eps=0.5)
    attack(made, n=3)  # the last of a shard
    assert [passes.compiled for passes in seen.passes] == [True, True, False]
    assert [passes.replay is not None for passes in seen.passes] == [True, True, False]
    assert all(passes.autocast is torch.bfloat16 for passes in seen.passes)
    assert graph_key(Attack(eps=0.1)) == graph_key(Attack(eps=0.5)) != graph_key(Attack(steps=9))
    assert isinstance(made._graphs, AttackGraphs)


def test_short_work_and_work_on_a_cpu_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not inference._can_compile(StubNetwork())
    seen = Perturb(monkeypatch)
    attack(DatasetAttack(StubNetwork(), "fp32", BATCH, MIN_GRADIENTS_TO_COMPILE - 1))
    assert seen.passes == [inference.PASSES["fp32"]]


def test_squares_are_put_where_a_network_sees_them() -> None:
    network, tensor = StubNetwork(module=CroppedNetwork()), to_tensors(noise_stamps(12), "cpu")
    z, attack = torch.full((12,), 0.1), Attack(method="square", steps=40, eps=0.1)
    images = tensor["images"].clone()
    found = DatasetAttack(network, "fp32", 12, 0)(tensor, z, attack, 3)
    assert torch.equal(tensor["images"], images)
    change = (found - images) / tensor["sky_sigma"][:, :, None, None]
    seen = VIEW.cut(change)
    assert change.count_nonzero() == seen.count_nonzero() > 0 and change.abs().max() < 0.1001
    expected = perturb(
        network.module,
        VIEW.cut(images).contiguous(),
        tensor["ebv"],
        z,
        tensor["sky_sigma"],
        tensor["object_id"],
        attack=attack,
        bins=network.bins,
        seed=3,
    )
    assert torch.equal(VIEW.cut(found), expected)


def test_a_failing_compiler_is_reported_once_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Perturb(monkeypatch, compiler_fails=True)
    made = DatasetAttack(StubNetwork(), "tf32", BATCH, MIN_GRADIENTS_TO_COMPILE)
    attack(made)
    attack(made)
    assert [passes.compiled for passes in seen.passes] == [True, False, False]
    assert all(passes.tf32 for passes in seen.passes)
    assert caplog.text.count("failed here (RuntimeError: no compiler): attacks run without either") == 1


class Capture:
    """Replaces `capture` on a CPU: a replay computes again and writes into the captured tensor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, compiler_fails: bool = False) -> None:
        self.replays = 0
        self._fails = compiler_fails
        monkeypatch.setattr(inference, "_can_compile", lambda network: True)
        monkeypatch.setattr(inference, "compiled", lambda module, device: module)
        monkeypatch.setattr(inference, "capture", self)

    def __call__(
        self, work: Callable[[], Tensor], device: torch.device
    ) -> tuple[Callable[[], object], Tensor]:
        if self._fails:
            raise RuntimeError("no compiler\nand a long tail")
        out = work()

        def replay() -> None:
            self.replays += 1
            out.copy_(work())

        return replay, out


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=made), torch.rand(n, generator=made)


def test_pdfs_of_long_work_on_a_gpu_come_from_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, network = Capture(monkeypatch), StubNetwork()
    forward = DatasetForward(network, BATCH, MIN_FORWARDS_TO_COMPILE)
    batches = [images(BATCH, 1), images(BATCH, 2), images(3, 3)]
    found = [forward(*batch) for batch in batches]  # a result is kept while the next overwrites the graph's
    for batch, logits in zip(batches, found, strict=True):
        assert torch.equal(logits, network.module(*batch))
    assert seen.replays == 2  # not for the last of a shard


def test_pdfs_of_short_work_and_on_a_cpu_come_from_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images(BATCH, 1)
    for objects in (MIN_FORWARDS_TO_COMPILE, 1):
        assert torch.equal(
            DatasetForward(StubNetwork(), BATCH, objects)(*batch), StubNetwork().module(*batch)
        )
    seen = Capture(monkeypatch)
    DatasetForward(StubNetwork(), BATCH, MIN_FORWARDS_TO_COMPILE - 1)(*batch)
    assert seen.replays == 0


def test_a_network_that_cannot_be_compiled_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Capture(monkeypatch, compiler_fails=True)
    forward, batch = DatasetForward(StubNetwork(), BATCH, MIN_FORWARDS_TO_COMPILE), images(BATCH, 1)
    for _ in range(2):
        assert torch.equal(forward(*batch), StubNetwork().module(*batch))
    assert caplog.text.count("failed here (RuntimeError: no compiler): PDFs are computed without") == 1


def test_predict_attack_and_evaluate_use_the_pdfs_of_the_graph(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, network = write_stamps(tmp_path / "data", noise_stamps(8), shard_rows=8), StubNetwork()
    predict([network], data, tmp_path / "plain.hdf5", batch=BATCH)
    plain = evaluate([network], data, eps=[0.1], methods=["fgsm"], batch=BATCH)
    seen = Capture(monkeypatch)
    monkeypatch.setattr(inference, "MIN_FORWARDS_TO_COMPILE", 0)
    predict([network], data, tmp_path / "graph.hdf5", batch=BATCH)
    assert seen.replays == 2
    write_adversarial_dataset(network, data, tmp_path / "attacked", Attack(method="fgsm"), batch=BATCH)
    assert seen.replays == 4
    found = evaluate([network], data, eps=[0.1], methods=["fgsm"], batch=BATCH)
    assert seen.replays == 8  # clean and attacked
    assert [c.metrics for c in found.networks[0].conditions] == [
        c.metrics for c in plain.networks[0].conditions
    ]
    with h5py.File(tmp_path / "plain.hdf5") as one, h5py.File(tmp_path / "graph.hdf5") as other:
        assert np.array_equal(one["data/pdfs"], other["data/pdfs"])
