"""The difference of two runs: none of a run with itself, and what was changed of another."""

import shutil
from pathlib import Path

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.summary.comparison import _losses, compare, compare_weights
from hpcphotoz.training.summary.comparison_text import comparison_lines
from hpcphotoz.training.summary.metrics_lines import MetricsLines
from hpcphotoz.training.trainer import train
from tests.helpers.training.runs import config, training_lines


@pytest.fixture(scope="module")
def other(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the run `alone`, but for a stronger attack and fewer lines of metrics."""
    out = tmp_path_factory.mktemp("comparison") / "other"
    train(config(eps=0.5, log_steps=2), dataset, out)
    return out


def text(one: Path, other: Path) -> str:
    return "\n".join(comparison_lines(compare(one, other), [MetricsLines.read(run) for run in (one, other)]))


def test_a_run_is_like_itself(alone: Path) -> None:
    found = compare(alone, alone)
    assert found["options"] == {} and found["data"]["same"] and found["versions"] == {}
    assert found["loss"]["max_difference"] == 0 and found["loss"]["first_different_step"] is None
    assert found["throughput"]["ratio"] == 1
    assert found["weights"]["max_difference"] == 0 and found["weights"]["steps"] == [20, 20]
    assert "loss: the same at 20 equal steps, bit for bit" in text(alone, alone)


def test_what_was_changed_is_found(alone: Path, other: Path) -> None:
    found = compare(alone, other)
    assert found["options"] == {"attack.eps": [0.3, 0.5], "run.log_steps": [1, 2]}
    assert found["loss"]["steps"] == list(range(2, 21, 2))
    ours = {line["step"]: line["loss"] for line in training_lines(alone)}
    theirs = {line["step"]: line["loss"] for line in training_lines(other)}
    worst = max(found["loss"]["steps"], key=lambda step: abs(ours[step] - theirs[step]))
    assert found["loss"]["at_step"] == worst
    assert found["loss"]["max_difference"] == abs(ours[worst] - theirs[worst]) > 0
    assert found["validation"]["epoch"] == [3, 3] and found["validation"]["sigma_mad"][0] > 0
    a, b = (checkpoint.newest(run) for run in (alone, other))
    assert a and b
    wanted = max(
        float((a[1]["model"][k].double() - b[1]["model"][k].double()).abs().max()) for k in a[1]["model"]
    )
    assert found["weights"]["max_difference"] == wanted > 0
    assert "attack.eps = 0.3, 0.5" in text(alone, other)


def test_other_networks_are_not_subtracted(alone: Path, dataset: Path, tmp_path: Path) -> None:
    train(config(width=16, max_steps=2), dataset, tmp_path / "wide")
    found = compare(alone, tmp_path / "wide")
    assert found["weights"]["max_difference"] is None and "other tensors" in found["weights"]["reason"]
    assert found["loss"]["steps"] == [1, 2]
    assert "weights: not compared: the networks have other" in text(alone, tmp_path / "wide")


def test_weights_that_are_not_finite_are_named(alone: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(alone, tmp_path / "run"))
    found = checkpoint.newest(run)
    assert found
    name = next(iter(found[1]["model"]))
    found[1]["model"][name] = torch.full_like(found[1]["model"][name], float("nan"))
    checkpoint.save(run, {**found[1], "step": 21}, 2)
    assert compare_weights(alone, run)["reason"] == f"{name} is not finite"


def test_runs_without_metrics_are_refused(alone: Path, tmp_path: Path) -> None:
    for name in ("config.toml", "provenance.json"):
        shutil.copy(alone / name, tmp_path / name)
    with pytest.raises(BadInput, match="no line of metrics yet"):
        compare(alone, tmp_path)
    (tmp_path / "metrics.jsonl").write_text((alone / "metrics.jsonl").read_text())
    found = compare(alone, tmp_path)  # checkpoints were removed
    assert found["weights"]["max_difference"] is None and "no checkpoint" in found["weights"]["reason"]
    (tmp_path / "provenance.json").unlink()
    with pytest.raises(BadInput, match="not a run folder"):
        compare(tmp_path, alone)


def test_the_greatest_difference_may_be_a_smaller_loss() -> None:
    one, other = (
        MetricsLines([{"step": step, "loss": loss} for step, loss in enumerate(losses)])
        for losses in ([1.0, 2.0, 3.0], [1.0, 2.5, 1.0])
    )
    found = _losses(one, other)
    assert (found["max_difference"], found["at_step"], found["first_different_step"]) == (2.0, 2, 1)
    assert _losses(other, one)["at_step"] == 2
