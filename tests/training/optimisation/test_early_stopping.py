"""The end of a run that does not get better, the same on all ranks, interrupted or not."""

import json
from pathlib import Path

import pytest

from hpcphotoz.config.load import configure
from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.optimisation.early_stopping import EarlyStopping
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.saving.criterion import score
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.training.runs import PER_EPOCH, SAME, arguments, assert_same_curve, config, validations

# So slow that sigma_mad stays the same: no epoch betters the first, and the run ends after the third.
STILL: dict[str, object] = {"learning_rate": 1e-30, "patience": 2, "epochs": 9}


def test_the_criterion_chooses_the_figure() -> None:
    figures = {"sigma_mad": 0.1, "sigma_mad_adversarial": 0.3}
    for criterion, expected in (("clean", 0.1), ("robust", 0.3), ("weighted", 0.75 * 0.1 + 0.25 * 0.3)):
        options = configure("test", criterion=criterion, fraction=0.25)
        assert score(figures, options) == pytest.approx(expected)
    assert score({"sigma_mad": 0.1}, options) is None
    assert score({**figures, "sigma_mad": float("nan")}, options) is None


@pytest.mark.parametrize(
    ("figures", "ends"),
    [
        ([3, 2, 1], None),
        ([1, 2, 3, 4], 2),
        ([3, 2, 2, 2, 1], 3),
        ([2, 3, 1, 2, 2], 4),
        ([float("nan"), 2, float("nan"), 3], 3),
    ],
)
def test_it_ends_after_epochs_that_better_nothing(figures: list[float], ends: int | None) -> None:
    stopping = EarlyStopping(configure("test", patience=2))
    ended = None
    for epoch, figure in enumerate(figures):
        stopping.add({"epoch": epoch, "sigma_mad": figure})
        ended = epoch if stopping.reason and ended is None else ended
    assert ended == ends


def test_figures_that_are_not_finite_end_it_in_plain_words() -> None:
    stopping = EarlyStopping(configure("test", patience=2))
    for epoch in range(3):
        stopping.add({"epoch": epoch, "sigma_mad": None})
    assert stopping.reason.startswith("no clean validation figure was finite in 3 epochs (run.patience 2;")


@pytest.fixture(scope="module")
def ended(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "ended"
    assert train(config(**STILL), dataset, out) is Outcome.FINISHED
    return out


def test_it_ends_saves_and_says_why(ended: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [line["epoch"] for line in validations(ended)] == [0, 1, 2]
    newest = checkpoint.latest(ended)
    assert newest is not None and checkpoint.load(newest)["step"] == 3 * PER_EPOCH
    assert train(config(**STILL), dataset, ended) is Outcome.FINISHED
    said = capsys.readouterr().out
    assert "finished already, at step 15: the clean validation figure" in said
    assert "of epoch 1 was not bettered for 2 epochs (run.patience 2; a larger one continues the run)" in said


def test_it_survives_a_resume_and_a_larger_patience_continues(
    ended: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for stop in (PER_EPOCH + 2, 2 * PER_EPOCH, 0):
        train(config(**STILL, max_steps=stop), dataset, out)
    assert_same_curve(out, ended, 0.0)
    assert validations(out) == validations(ended)
    assert train(config(**{**STILL, "patience": 3}), dataset, out) is Outcome.FINISHED
    assert [line["epoch"] for line in validations(out)] == [0, 1, 2, 3]


def test_a_validation_that_a_stop_prevented_decides_after_the_resume(
    ended: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(config(**STILL, max_steps=3 * PER_EPOCH), dataset, out)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    ended_by = {"epoch": 2, "part": "validation"}
    kept = [line for line in lines if not ended_by.items() <= json.loads(line).items()]
    assert len(kept) == len(lines) - 1
    (out / "metrics.jsonl").write_text("".join(kept))
    assert train(config(**STILL), dataset, out) is Outcome.FINISHED
    assert_same_curve(out, ended, 0.0)
    assert validations(out) == validations(ended)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"mode": "ranks", "attackers": 1},
        pytest.param({"mode": "ranks", "attackers": 1, "max_staleness": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_ranks_end_together_attackers_too(
    how: dict[str, object], ended: Path, dataset: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "run", arguments(dataset, tmp_path / "run", tmp_path, **STILL, **how)
    for said in ("finished at step 15: the clean", "finished already, at step 15: the clean"):
        results = ranks.run(2, words)
        assert [status for status, _, _ in results] == [0, 0], results
        assert said in results[0][1]
    assert_same_curve(out, ended, SAME)


def test_a_figure_that_there_is_not_is_refused() -> None:
    for options, says in (
        (
            {"patience": 1, "validation": 0},
            "run.patience 1: nothing is validated: data.validation is 0: hold out",
        ),
        ({"criterion": "robust", "fraction": 0}, "is attacked, as adversarial.fraction is 0: give a number"),
        ({"criterion": "robust", "validation_objects": 0}, "as adversarial.validation_objects is 0: give"),
        ({"criterion": "weighted", "fraction": 0.5, "validation": 0}, "data.validation is 0"),
        ({"momentum": 0.5}, "has an effect only with algorithm sgd or muon"),
        ({"schedule": "one_cycle", "warmup_steps": 7}, "schedule one_cycle has its own"),
        ({"freeze": ["a b"]}, "want names without spaces"),
    ):
        with pytest.raises(BadInput, match=says):
            configure("test", **options)
    configure("test", criterion="robust", validation_objects=100)
