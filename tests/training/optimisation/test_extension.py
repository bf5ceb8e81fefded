"""A run that is extended by more epochs."""

import shutil
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.training.runs import (
    PER_EPOCH,
    SAME,
    arguments,
    assert_same_curve,
    config,
    training_lines,
    validations,
)


@pytest.mark.parametrize(
    ("schedule", "stop"), [("constant", 0), ("halfway", PER_EPOCH)], ids=["finished", "before its half"]
)
def test_extended_it_is_to_the_bit_the_run_that_was_begun_with_more_epochs(
    schedule: str, stop: int, dataset: Path, tmp_path: Path
) -> None:
    out, how = tmp_path / "run", {"schedule": schedule, "algorithm": "sgd", "ema_decay": 0.9}
    train(config(**how, epochs=2, max_steps=stop), dataset, out)
    train(config(**how, epochs=3), dataset, out)
    train(config(**how, epochs=3), dataset, tmp_path / "whole")
    assert_same_curve(out, tmp_path / "whole", 0.0)
    assert validations(out) == validations(tmp_path / "whole")


def test_a_finished_cosine_goes_on_on_its_longer_curve_and_says_so(
    alone: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "run"))
    assert train(config(epochs=5), dataset, out) is Outcome.FINISHED
    said = capsys.readouterr().out
    assert "extended from 4 to 5 epochs: schedule cosine goes on over 5 epochs, learning rate" in said
    before, after = training_lines(alone), training_lines(out)
    assert after[: len(before)] == before and len(after) == 5 * PER_EPOCH
    rates = [line["learning_rate"] for line in after[4 * PER_EPOCH - 1 :]]
    # 0.5 (1 + cos(pi s / 25)) of 3e-3 at steps 20 to 24, where that of 20 steps had come down to 0.006 of it.
    assert rates[0] < 2e-5 and rates[1:] == pytest.approx(
        [2.86e-4, 1.85e-4, 1.05e-4, 4.7e-5, 1.2e-5], rel=0.02
    )
    capsys.readouterr()
    assert train(config(epochs=5), dataset, out) is Outcome.FINISHED
    assert "finished already" in capsys.readouterr().out


def test_a_fallen_learning_rate_does_not_rise_again_also_after_a_resume(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"schedule": "halfway", "warmup_steps": 0}
    for epochs, stop in ((2, 0), (5, 2 * PER_EPOCH + 2), (5, 0)):
        train(config(**how, epochs=epochs, max_steps=stop), dataset, tmp_path / "run")
    rates = [line["learning_rate"] for line in training_lines(tmp_path / "run")]
    assert rates == pytest.approx([3e-3] * PER_EPOCH + [6e-4] * 4 * PER_EPOCH)
    said = capsys.readouterr().out
    assert "from 2 to 5 epochs: schedule halfway: the learning rate stays at a fifth, 0.0006\n" in said


@pytest.mark.slow
def test_two_ranks_extend_what_one_began(dataset: Path, tmp_path: Path) -> None:
    train(config(epochs=1), dataset, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "two")
    train(config(epochs=2), dataset, tmp_path / "run")
    for status, _, error in ranks.run(2, arguments(dataset, tmp_path / "two", tmp_path, epochs=2)):
        assert status == 0, error
    assert_same_curve(tmp_path / "two", tmp_path / "run", SAME)


def test_fewer_epochs_and_a_cycle_that_has_its_end_are_refused(
    alone: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"another run.epochs \(4, now 3\)"):
        train(config(epochs=3), dataset, alone)
    cycle = {"schedule": "one_cycle"}
    train(config(**cycle, epochs=1, warmup_steps=0), dataset, tmp_path / "run")
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(BadInput, match=r"run.epochs 1, now 2: schedule one_cycle: .* --from this run"):
        train(config(**cycle, epochs=2, warmup_steps=0), dataset, tmp_path / "run")
    assert (tmp_path / "run" / "config.toml").read_text() == before
