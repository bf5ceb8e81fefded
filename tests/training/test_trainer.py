"""The same loss curve on 1, 2 and 3 ranks, and the content of the run folder."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.config import load as configuration
from hpcphotoz.training.optimisation.schedules import implausible_options
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.datasets import make_stamps, write_stamps
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config


def test_training_lowers_the_loss_and_attacks_the_asked_fraction(alone: Path) -> None:
    lines = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    per_epoch = len(steps) // 4
    first, last = steps[:per_epoch], steps[-per_epoch:]
    # Both epochs hold the same objects, so the difference is learning: 0.11 nats were seen, none without
    # updates.
    assert sum(line["loss"] for line in last) < sum(line["loss"] for line in first) - 0.05 * per_epoch
    assert all(line["loss_adversarial"] is not None and 0 <= line["data_wait"] <= 1 for line in steps)
    assert [line["epoch"] for line in lines if line.get("part") == "validation"] == [0, 1, 2, 3]


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_same_loss_curve_on_more_ranks(world_size: int, alone: Path, dataset: Path, tmp_path: Path) -> None:
    for status, _, error in ranks.run(world_size, arguments(dataset, tmp_path / "run", tmp_path)):
        assert status == 0 and "Warning" not in error, error
    assert_same_curve(tmp_path / "run", alone, SAME)
    assert len(list((tmp_path / "run" / "logs").glob("rank-*.log"))) == world_size


@pytest.mark.slow
def test_ranks_that_get_no_object_of_a_batch_take_part(dataset: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    train(config(global_batch=2, max_steps=6, log_steps=1), dataset, one)
    for status, _, error in ranks.run(3, arguments(dataset, three, tmp_path, global_batch=2, max_steps=6)):
        assert status == 0, error
    assert_same_curve(three, one, SAME)


def test_signal_handlers_are_put_back(dataset: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    train(config(max_steps=1), dataset, tmp_path / "run")
    assert signal.getsignal(signal.SIGUSR2) is before


def test_only_the_newest_checkpoints_are_kept(alone: Path) -> None:
    names = sorted(p.name for p in (alone / "checkpoints").iterdir())
    assert len(names) == 2 and names[-1] == f"step-{len(ranks.curve(alone)):08d}.pt"


def test_the_run_folder_is_complete(alone: Path, dataset: Path) -> None:
    assert configuration.load(str(alone / "config.toml")) == config()
    start = json.loads((alone / "provenance.json").read_text())["starts"][0]
    assert start["world_size"] == 1 and start["data"] == str(dataset.resolve()) and start["torch"]


def test_a_batch_or_a_warm_up_longer_than_the_run_is_warned_of() -> None:
    asked = config(epochs=2, global_batch=101, warmup_steps=3, eps_warmup_steps=3, k_warmup_steps=2)
    batch, warm_up, of_eps = implausible_options(asked, 100, 2)
    assert batch == "run.global_batch 101: the training part holds 100 objects: an epoch is one step"
    assert warm_up.startswith("optimiser.warmup_steps 3: all 2 epochs are 2 steps")
    assert of_eps.startswith("adversarial.eps_warmup_steps 3: ")
    assert not implausible_options(config(epochs=2, global_batch=100, warmup_steps=2), 100, 2)


def test_attacks_of_radius_0_are_warned_of() -> None:
    fits: dict[str, Any] = {"epochs": 2, "global_batch": 100, "warmup_steps": 2, "eps": 0.0}
    assert implausible_options(config(**fits), 100, 2) == [
        "attack.eps 0: attacks change nothing, at their usual cost: adversarial.fraction 0 leaves them out"
    ]
    assert not implausible_options(config(**fits, fraction=0), 100, 2)


def test_a_warning_of_a_long_warm_up_is_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(max_steps=1, warmup_steps=10_000), dataset, tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "warmup_steps" in line]
    assert len(lines) == 1 and lines[0].startswith("hpcphotoz: warning: optimiser.warmup_steps 10000: ")


@pytest.mark.parametrize("storage", ["float16", "int16"])
def test_smaller_storage_trains_to_the_same_loss_but_for_its_rounding(tmp_path: Path, storage: str) -> None:
    for kind in ("float32", storage):
        write_stamps(tmp_path / kind, make_stamps(75), shard_rows=32, storage=kind)
        train(config(max_steps=6), tmp_path / kind, tmp_path / f"run-{kind}")
    ours, theirs = (ranks.curve(tmp_path / f"run-{kind}") for kind in (storage, "float32"))
    # Storage moves a pixel by 1/64 sky sigma at most, a thirtieth of the attack of 0.3; seen: 4e-4.
    assert 0 < max(abs(a - b) for (_, a), (_, b) in zip(ours, theirs, strict=True)) < 5e-3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: torch.compile has none to call")
def test_compiled_networks_give_the_same_loss_curve(dataset: Path, tmp_path: Path) -> None:
    curves = []
    for number, how in enumerate(["off", "on"]):
        options = config(name="inception", max_steps=3, learning_rate=1e-4, compiled=how)
        train(options, dataset, tmp_path / str(number))
        curves.append([loss for _, loss in ranks.curve(tmp_path / str(number))])
    # Sums have another order, fed back through Adam for two updates; a wrong function would be 1e-2 away.
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], rel=1e-4)
