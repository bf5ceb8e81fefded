"""Overlap, objectives and the profile through whole runs: the same loss curve on any number of ranks."""

import json
import shutil
from pathlib import Path

import pytest

from hpcphotoz.config import Attack
from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.training import test_trainer
from tests.training.test_trainer import SAME, arguments, assert_same_curve, config

alone = test_trainer.alone  # the same run with overlap off


def test_streams_give_the_loss_curve_of_off(alone: Path, dataset: Path, tmp_path: Path) -> None:
    assert train(config(mode="streams"), dataset, tmp_path / "one") is Outcome.FINISHED
    assert_same_curve(tmp_path / "one", alone, SAME)


def test_streams_average_gradients_once_over_ranks(alone: Path, dataset: Path, tmp_path: Path) -> None:
    """In several micro-batches too."""
    words = arguments(dataset, tmp_path / "run", tmp_path, mode="streams", micro_batch=3)
    for status, _, error in ranks.run(2, words):
        assert status == 0, error
    assert_same_curve(tmp_path / "run", alone, SAME)
    log = (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    assert "clean passes and attack run one after the other" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"objective": "append", "eps_warmup_steps": 5},
        {"objective": "consistency", "k_warmup_steps": 5},
        pytest.param({"objective": "free", "learning_rate": 1e-3}, marks=pytest.mark.slow),
        pytest.param({"objective": "consistency", "mode": "ranks", "attackers": 1}, marks=pytest.mark.slow),
        pytest.param({"objective": "append", "mode": "ranks", "attackers": 1}, marks=pytest.mark.slow),
        pytest.param({"label_width": 2.0, "mode": "streams"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_objectives_do_not_depend_on_ranks_either(
    how: dict[str, object], alone: Path, dataset: Path, tmp_path: Path
) -> None:
    off = {key: value for key, value in how.items() if key not in ("mode", "attackers")}
    train(config(**off, max_steps=10), dataset, tmp_path / "one")
    for status, _, error in ranks.run(2, arguments(dataset, tmp_path / "two", tmp_path, **how, max_steps=10)):
        assert status == 0, error
    assert_same_curve(tmp_path / "two", tmp_path / "one", SAME)
    apart = [
        abs(a - b) for (_, a), (_, b) in zip(ranks.curve(tmp_path / "one"), ranks.curve(alone), strict=False)
    ]
    assert max(apart) > 1e-3, "another objective"


def test_a_continuation_may_change_how_and_not_what(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(max_steps=2), dataset, out)
    train(config(max_steps=4, mode="streams", micro_batch=2, fused_adam="off"), dataset, out)
    for changed, said in (
        ({"mode": "ranks", "max_staleness": 1}, r"another overlap.max_staleness \(0, now 1\)"),
        ({"objective": "append"}, "another adversarial.objective"),
        ({"precision": "bf16"}, "another compute.precision"),
    ):
        with pytest.raises(BadInput, match=said):
            train(config(**changed), dataset, out)


def test_a_run_too_short_for_a_profile_says_so(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(max_steps=5), dataset, tmp_path / "run", profile=True)
    assert "no profile: the run ended after 5 steps, want 8" in capsys.readouterr().out


def test_a_profile_says_where_the_time_went(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(config(), dataset, out, profile=True)
    found = json.loads((out / "profile" / "summary.json").read_text())
    assert set(found["shares"]) == {"data", "attack", "clean and adversarial", "optimiser", "rest"}
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert all(share >= 0 for share in found["shares"].values())
    # Operations are counted, steps take a millisecond or more, and a network of 8 channels is not efficient.
    assert 0 < found["fraction_of_device"] < 1
    text = (out / "profile" / "summary.txt").read_text()
    assert text in capsys.readouterr().out and "GFLOP/s" in text and len(text.splitlines()) < 20
    trace = json.loads((out / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"attack", "data", "optimiser"} <= names


def test_a_profile_of_standard_training_speaks_of_no_attack(dataset: Path, tmp_path: Path) -> None:
    standard = config().model_copy(update={"attack": Attack()})
    train(standard, dataset, tmp_path / "run", profile=True)
    found = json.loads((tmp_path / "run" / "profile" / "summary.json").read_text())
    assert "clean" in found["shares"] and "clean and adversarial" not in found["shares"]


@pytest.mark.slow
def test_a_profile_on_two_ranks_sees_the_all_reduce(dataset: Path, tmp_path: Path) -> None:
    """And what it counts on rank 0 disturbs no other."""
    words = [*arguments(dataset, tmp_path / "run", tmp_path, mode="streams"), "--profile"]
    for status, _, error in ranks.run(2, words):
        assert status == 0, error
    found = json.loads((tmp_path / "run" / "profile" / "summary.json").read_text())
    assert {"clean", "adversarial", "attack"} <= set(found["shares"]) and 0 < found["all_reduce"] < 1
    assert len(ranks.curve(tmp_path / "run")) == 20


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: torch.compile has none to call")
def test_compiled_networks_train_alike(dataset: Path, tmp_path: Path) -> None:
    curves = []
    for number, how in enumerate(["off", "on"]):
        options = config(name="inception", max_steps=3, learning_rate=1e-4, compiled=how)
        train(options, dataset, tmp_path / str(number))
        curves.append([loss for _, loss in ranks.curve(tmp_path / str(number))])
    # Sums in another order, fed back through Adam for two updates; another function would be 1e-2 away.
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], rel=1e-4)
