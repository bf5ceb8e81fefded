"""The passes that are timed are those of a training step; their figures are ratios to a copy in turn."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.harness import Benchmark
from benchmarks.training import passes as module
from benchmarks.training.passes import PASSES, Passes, add_passes, as_trained, figures, measured
from benchmarks.training.steps import assembled
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.overlap.streams import NoOverlap
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.step import Step
from tests.helpers.kernels.capture import Watch, fake_gpu

CPU = torch.device("cpu")


@pytest.fixture
def config() -> Config:
    options: dict[str, object] = {"name": "compact", "width": 8, "precision": "fp32"}
    return configure("a test", **options, compiled="off", graphs="off", fraction=0.5, steps=3)


@pytest.fixture
def passes(config: Config) -> Passes:
    components, rank_batch = assembled(config, 4, CPU)[1:]
    return Passes(components, rank_batch, compiled=False)


def test_the_gradients_are_those_of_a_step(passes: Passes) -> None:
    c = passes.components
    ours = [grad.clone() for grad in passes.both(compiled=False)()]
    ours_again = passes.both(compiled=False)()
    for a, b in zip(ours, ours_again, strict=True):
        assert torch.equal(a, b), "made anew, not added to"
    clean = NoOverlap(lambda batch: batch.images[batch.attacked])
    step = Step(c.module, c.optimiser, clean, TrainingObjective(c.config, c.bins), c.compute)
    step.gradients(passes.rank_batch)
    theirs = [p.grad for p in c.module.parameters()]
    for a, whole in zip(ours, theirs, strict=True):
        # A step divides by the number of objects, which is a power of 2.
        assert whole is not None and torch.equal(a / 4, whole)


def test_the_attack_is_the_input_gradient_of_the_attacked_objects(passes: Passes) -> None:
    c, batch = passes.components, passes.rank_batch
    with passes.attack(compiled=False) as attack:
        (found,) = attack()
    x = batch.images[batch.attacked].requires_grad_()
    labels = c.bins.index(batch.z_spec[batch.attacked])
    logits: Tensor = c.module.eval()(x, batch.ebv[batch.attacked])
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, x)
    assert len(found) == 2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert all(p.requires_grad for p in c.module.parameters()), "thawed again"


def test_bytes_of_the_passes(passes: Passes) -> None:
    c, moved = passes.components, passes.bytes()
    weights = sum(p.nbytes for p in c.module.parameters())
    assert moved["optimiser"] == 7 * weights, "AdamW"
    images = passes.rank_batch.images.nbytes
    assert images + weights < moved["training forward"] < moved["training backward"]
    # Half of the objects; what does not grow with them are the weights, which the backward pass reads again.
    forward = moved["training forward"] - weights
    assert weights + forward / 2 < moved["attack"] < 2 * weights + moved["training backward"] / 2 + forward


def test_figures_are_medians_of_rounds_with_a_copy() -> None:
    found = figures(moved=3 * 10**9, seconds=[2.0, 4.0], copy_s=[1.0, 2.0], copied=10**9)
    # The copy moves 2 GB in 1 s, so the limit of 3 GB is 1.5 s in the first round, and 3 s in the second.
    assert found["fraction_of_limit"]["median"] == pytest.approx(0.75)
    assert found["gb_per_s"]["median"] == pytest.approx((1.5 + 0.75) / 2) and found["bytes"] == 3 * 10**9


def test_every_pass_is_measured(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "COPIED", {"cpu": 2**20})
    found = measured(config, 4, CPU, repeat=2)
    assert found["batch"] == 4 and found["speed"]["training"] == "fp32"
    assert all(found[name]["us"]["n"] == 2 and found[name]["bytes"] > 0 for name in PASSES)
    module.show("compact", "eager", found)
    lines = capsys.readouterr().out.splitlines()
    assert [line[20:40].strip() for line in lines] == list(PASSES)


def test_a_form_that_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, forms = tmp_path / "step.json", list[tuple[str, str]]()
    one: dict[str, Any] = {"us": {"median": 1.0}, "gb_per_s": {"median": 1.0}, "bytes": 1}
    one |= {"fraction_of_limit": {"median": 0.5}}

    def as_trained(network: str, compiled: str, size: int, device: torch.device) -> str:
        assert size == 256
        forms.append((network, compiled))
        return compiled

    monkeypatch.setattr(module, "as_trained", as_trained)
    monkeypatch.setattr(module, "measured", lambda *given: dict.fromkeys(PASSES, one))
    gpu = torch.device("cuda")
    for networks in (["cnn"], ["cnn", "inception"]):
        add_passes(networks, 1, gpu, Benchmark("step", path, minutes=9))
    assert forms == [(network, how) for network in ("cnn", "inception") for how in ("on", "off")]
    found = json.loads(path.read_text())["figures"]["passes"]
    assert set(found["cnn"]) == set(found["inception"]) == {"compiled", "eager"}


def test_a_run_as_the_command_trains_it() -> None:
    config = as_trained("compact", "off", 4, CPU)
    assert config.compute.precision in ("fp32", "bf16") and config.adversarial.fraction == 0.5
    compute = assembled(config, 4, CPU)[1].compute
    assert not compute.compiled and compute.graphs == "off"


@pytest.mark.skipif(
    torch.version.cuda is None or find_spec("triton") is None,
    reason="fake CUDA tensors want a torch with CUDA: `make test-torch211`",
)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("network", ["compact", "inception"])
def test_the_passes_can_be_captured(
    network: str, precision: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"name": network, "fraction": 0.5}
    config, scale, n = configure("a test", **options), (0.1,) * 5, 8
    compute = replace(
        compute_options(config.compute, CPU), training=precision, attack=precision, merged=False
    )
    with fake_gpu(monkeypatch), torch.device("cuda"):
        network_there = build(config.model, stamp=16, scale=scale)
        optimiser = torch.optim.SGD(network_there.parameters(), 0.1)
        given = bins_of(config.model), scale, compute, torch.device("cuda"), Timers()
        components = TrainingComponents(network_there, optimiser, config, *given)
        rows, numbers = torch.arange(n), np.arange(n)
        images, each, bands = torch.randn(n, 5, 16, 16), torch.rand(n), torch.rand(n, 5)
        tensors = images, each, each, bands, rows, rows[::2].clone(), rows[1::2].clone()
        passes = Passes(components, RankBatch(*tensors, numbers[::2], numbers, n, 0, 0), compiled=False)
        both = passes.both(compiled=False)
        with passes.attack(compiled=False) as attack, Watch() as watch:
            attack()
        with watch:
            both()
    assert any("convolution" in name for name in watch.names)
    assert not watch.found, "\n".join(watch.found)
