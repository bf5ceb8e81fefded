"""Deterministic mode: the same bits twice and across a resume, nothing that is timed, and its refusals."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcphotoz.errors import BadInput
from hpcphotoz.training import compute
from hpcphotoz.training.compute import choose_compute
from hpcphotoz.training.exact.deterministic import WORKSPACE, deterministic, seed_step
from hpcphotoz.training.exact.rounding import changes
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.training.fake_gpu import ONE_RANK, FakeGPU
from tests.helpers.training.runs import arguments, assert_same_curve, config, training_lines, validations
from tests.helpers.training.steps import CPU, configured
from tests.helpers.user_networks import NAME

# Keys of metrics.jsonl that begin with these have no time in them.
FIGURES = ("step", "epoch", "learning_rate", "loss", "skipped", "lost", "gradient")


@pytest.fixture(autouse=True)
def own_workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variable is set for the whole process: it must not stay in that of the tests."""
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    yield


def assert_same_bits(run: Path, other: Path) -> None:
    """Losses and validations of metrics.jsonl, and all that the last checkpoint holds."""
    ours, theirs = (
        [
            {name: value for name, value in line.items() if name.startswith(FIGURES)}
            for line in training_lines(out)
        ]
        for out in (run, other)
    )
    assert ours == theirs
    assert validations(run) == validations(other)
    ours_last, theirs_last = (checkpoint.load(checkpoint.paths(out)[0]) for out in (run, other))
    assert ours_last["checksum"] == theirs_last["checksum"]


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "streams", "ema_decay": 0.9},
        {"objective": "free"},
        {"name": f"{NAME}:dropping"},
        {"loss": "crps", "objective": "append"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_twice_and_across_a_resume_the_bits_are_the_same(
    options: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    asked = {"deterministic": True, "epochs": 2, **options}
    for name in ("once", "twice", "resumed"):
        torch.manual_seed(len(name))  # whatever the state of torch's generator
        if name == "resumed":
            train(config(**asked, max_steps=4), dataset, tmp_path / name)
        train(config(**asked), dataset, tmp_path / name)
    assert_same_bits(tmp_path / "twice", tmp_path / "once")
    assert_same_bits(tmp_path / "resumed", tmp_path / "once")


def test_the_mode_moves_no_loss(alone: Path, dataset: Path, tmp_path: Path) -> None:
    """On one rank of a CPU sums have one order anyway."""
    train(config(deterministic=True), dataset, tmp_path / "run")
    assert_same_curve(tmp_path / "run", alone, 0.0)


@pytest.mark.slow
def test_three_ranks_are_killed_and_end_with_the_same_bits(dataset: Path, tmp_path: Path) -> None:
    words = [arguments(dataset, tmp_path / name, tmp_path, deterministic=True) for name in "ab"]
    for status, _, error in ranks.run(3, words[0]):
        assert status == 0, error
    running = ranks.start(3, words[1])
    ranks.wait_until(lambda: len(ranks.curve(tmp_path / "b")) >= 8, running)
    for process in running:
        process.kill()
    ranks.finish(running)
    for status, _, error in ranks.run(3, words[1]):
        assert status == 0 and "compute.deterministic" not in error, error
    assert_same_bits(tmp_path / "b", tmp_path / "a")


def test_no_choice_on_a_cpu_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "bfloat16_speedup", lambda: 5.0)
    for asked, begun, want in ((True, None, "fp32"), (True, "bf16", "bf16"), (False, None, "bf16")):
        options = configured(precision="auto", deterministic=asked)
        found = choose_compute(options, ONE_RANK, nn.Linear(1, 1), CPU, (4, 5, 8, 8), 100, begun)
        assert found.compute.precision == want


def test_no_choice_on_a_gpu_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch)
    found = gpu.settle(deterministic=True)
    assert not gpu.calls, "nothing was timed"
    assert (found.compute.precision, found.compute.compiled) == ("tf32", "off")
    assert "deterministic: nothing is chosen by its time" in found.message
    assert gpu.settle(deterministic=True, begun="bf16").compute.precision == "bf16"
    assert gpu.settle().compute.compiled == "on" and gpu.calls


def test_torch_is_left_as_it_was() -> None:
    state = torch.random.get_rng_state()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        seed_step(0, 3, 0)
        assert not torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert torch.equal(torch.random.get_rng_state(), state)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_every_step_and_rank_has_its_own_dropout() -> None:
    found = []
    for step, rank in ((3, 0), (4, 0), (3, 1), (3, 0)):
        seed_step(0, step, rank)
        found.append(torch.rand(4))
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_workspace_of_cublas_is_set_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE)
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(BadInput, match=f"{WORKSPACE}=:0:0: .*set {WORKSPACE}=:4096:8 before Python starts"):
        with deterministic(True):
            pass
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(BadInput, match=f"CUDA has begun in this process without {WORKSPACE}"):
        with deterministic(True):
            pass


def test_an_operation_without_deterministic_form_is_named(dataset: Path, tmp_path: Path) -> None:
    options = {"name": f"{NAME}:dropping", "options": {"unrepeatable": True}, "max_steps": 1}
    train(config(**options), dataset, tmp_path / "usual")
    with pytest.raises(
        BadInput, match="compute.deterministic: the network or the attack uses put_, which has"
    ):
        train(config(**options, deterministic=True), dataset, tmp_path / "run")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_resume_that_rounds_otherwise_is_warned_of(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def go_on(steps: int, **options: Any) -> str:
        train(config(deterministic=True, max_steps=steps, **options), dataset, tmp_path / "run")
        return capsys.readouterr().err

    assert "compute.deterministic" not in go_on(3) + go_on(4)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        said = go_on(5, micro_batch=4)
    finally:
        torch.set_num_threads(threads)
    assert f"goes on with another micro_batch (64, now 4), threads ({threads}, now {threads + 1}): " in said
    assert said.count("not to the bit") == 1


def test_what_of_two_starts_rounds_otherwise() -> None:
    one = {"world_size": 2, "torch": "2.13.0", "speed": {"merged": True}, "rounding": {"threads": [1, 2]}}
    assert not changes(one, one)
    other = {
        "world_size": 4,
        "torch": "2.13.0",
        "speed": {"merged": True},
        "rounding": {"threads": 1, "gpu": "A"},
    }
    assert changes(one, other) == ["world_size (2, now 4)", "threads ([1, 2], now 1)", "gpu (none, now A)"]
    assert not changes({"world_size": 4}, other), "a start of an earlier version"
