"""A run that is stopped or killed anywhere and resumed gives the loss curve of an unbroken run."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.network import load_network
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.datasets import make_dataset
from tests.helpers.training.runs import (
    PER_EPOCH,
    SAME,
    arguments,
    ask_to_stop,
    assert_same_curve,
    config,
    validations,
)


@pytest.mark.parametrize("stop_at", range(1, 20, 6))
def test_stopped_at_a_step_and_resumed_gives_the_same_bits(
    stop_at: int, alone: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(config(max_steps=stop_at), dataset, out)
    assert len(ranks.curve(out)) == stop_at
    train(config(), dataset, out)
    assert_same_curve(out, alone, 0.0)
    ours, theirs = (load_network(run).module.state_dict() for run in (out, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("logged", [2, pytest.param(7, marks=pytest.mark.slow)])
def test_killed_at_any_instant_and_resumed_on_another_world(
    logged: int, alone: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path)
    running = ranks.start(2, words)
    ranks.wait_until(lambda: len(ranks.curve(out)) >= logged, running)
    for process in running:
        process.send_signal(signal.SIGKILL)
    ranks.finish(running)
    train(config(), dataset, out)
    assert_same_curve(out, alone, SAME)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    alone: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, epochs=4)
    running = ranks.start(2, words)
    ranks.wait_until(lambda: len(ranks.curve(out)) >= 1, running)
    running[1].send_signal(signal.SIGUSR2)
    results = ranks.finish(running)
    finished = "finished at step" in results[0][1]  # the signal may come too late to matter on a fast machine
    assert [status for status, _, _ in results] == [0 if finished else 75] * 2, results
    if not finished:
        assert "SIGUSR2 received: saved and stopped after step" in results[0][1]
        steps = [step for step, _ in ranks.curve(out)]
        state = checkpoint.load(checkpoint.latest(out))  # type: ignore[arg-type]
        assert state["step"] == steps[-1]
    train(config(), dataset, out)
    assert_same_curve(out, alone, SAME)


# The flag is looked at once after each step, and once as a short validation begins.
@pytest.mark.parametrize(
    ("look", "step"),
    [(PER_EPOCH, PER_EPOCH), (PER_EPOCH + 1, PER_EPOCH), (4 * PER_EPOCH + 3, 4 * PER_EPOCH)],
    ids=["in the last step of an epoch", "in its validation", "in the last step of all"],
)
def test_a_stop_at_an_epochs_end_saves_at_once_and_the_resumed_run_validates(
    look: int, step: int, alone: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        ask_to_stop(patch, look)
        patch.setattr("hpcphotoz.training.run.checkpoint.save", noted := Saves(checkpoint.save))
        assert train(config(checkpoint_steps=100), dataset, out) is Outcome.STOPPED
    assert noted.steps == [step], "saved once"
    assert len(ranks.curve(out)) == step
    assert [line["step"] for line in validations(out)] == list(range(PER_EPOCH, step, PER_EPOCH))
    assert train(config(checkpoint_steps=100), dataset, out) is Outcome.FINISHED
    assert_same_curve(out, alone, 0.0)
    assert validations(out) == validations(alone), "every epoch once, with the figures of an unbroken run"


class Saves:
    """Saves checkpoints, and records their steps."""

    def __init__(self, save: Callable[..., Path]) -> None:
        self._save, self.steps = save, list[int]()

    def __call__(self, run: Path, state: checkpoint.State, keep: int, verified: set[Path]) -> Path:
        self.steps.append(state["step"])
        return self._save(run, state, keep, verified)


def test_a_checkpoint_is_saved_before_the_validation(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation may take longer than a scheduler waits after its signal."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hpcphotoz.training.loop.validate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config(checkpoint_steps=PER_EPOCH), dataset, tmp_path / "run")
    newest = checkpoint.latest(tmp_path / "run")
    assert newest is not None and checkpoint.load(newest)["step"] == PER_EPOCH
    assert train(config(checkpoint_steps=PER_EPOCH), dataset, tmp_path / "run") is Outcome.FINISHED
    assert [line["epoch"] for line in validations(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_finished_run_is_not_validated_again(alone: Path, dataset: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "run"))
    assert train(config(), dataset, out) is Outcome.FINISHED
    assert validations(out) == validations(alone)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mode": "ranks", "attackers": 1, "max_staleness": 1}], ids=str)
def test_a_signal_as_an_epoch_ends_stops_two_ranks_and_is_made_up_for(
    options: dict[str, object], dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, epochs=2, **options)
    running = ranks.start(2, words)
    ranks.wait_until(lambda: len(ranks.curve(out)) >= PER_EPOCH - 1, running)
    for process in running:
        process.send_signal(signal.SIGUSR2)
    results = ranks.finish(running)
    assert [status for status, _, _ in results] == [75, 75], results
    results = ranks.run(2, words)
    assert [status for status, _, _ in results] == [0, 0], results
    assert len(ranks.curve(out)) == 2 * PER_EPOCH
    assert [line["epoch"] for line in validations(out)] == [0, 1]


def test_the_wall_time_budget_stops_cleanly(dataset: Path, tmp_path: Path) -> None:
    assert train(config(wall_minutes=1e-6), dataset, tmp_path / "run") is Outcome.STOPPED
    assert len(ranks.curve(tmp_path / "run")) == 1


def test_a_torn_checkpoint_is_skipped(alone: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(max_steps=6), dataset, out)
    newest = checkpoint.latest(out)
    assert newest is not None and newest.name == "step-00000006.pt"
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    train(config(), dataset, out)
    assert_same_curve(out, alone, 0.0)


def test_another_configuration_does_not_continue_a_run(alone: Path, dataset: Path) -> None:
    with pytest.raises(BadInput, match=r"another optimiser.learning_rate \(0.003, now 0.5\)"):
        train(config(learning_rate=0.5), dataset, alone)


def test_another_dataset_does_not_continue_a_run(dataset: Path, tmp_path: Path) -> None:
    train(config(max_steps=2), dataset, tmp_path / "run")
    other = make_dataset(tmp_path / "other", n=40, shard_rows=20)
    with pytest.raises(BadInput, match="resume on the same dataset"):
        train(config(), other, tmp_path / "run")


def test_a_run_of_the_older_order_is_not_resumed_but_its_split_is_still_known(
    dataset: Path, tmp_path: Path
) -> None:
    """Its split used the training seed: with another split, its held-out objects would be trained on."""
    train(config(max_steps=3, seed=3), dataset, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000003.pt"
    state = checkpoint.load(path)
    del state["order"], state["format"]
    for key in ("split_seed", "test", "where", "verify", "damaged", "windows_ahead"):
        del state["config"]["data"][key]
    state["config"]["data"]["read_ahead"] = 4
    checkpoint.save(tmp_path / "run", state, 2)
    with pytest.raises(BadInput, match="another order of objects"):
        train(config(seed=3), dataset, tmp_path / "run")
    data = load_network(tmp_path / "run").config.data
    assert data.split_seed == 3 and data.windows_ahead == 1  # `read_ahead` counted batches


def test_a_continuation_may_change_how_but_not_what_is_computed(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(max_steps=2), dataset, out)
    train(config(max_steps=4, mode="streams", micro_batch=2, fused_adam="off"), dataset, out)
    for changed, said in (
        ({"mode": "ranks", "max_staleness": 1}, r"another overlap.max_staleness \(0, now 1\)"),
        ({"objective": "append"}, "another adversarial.objective"),
        ({"eps": 0.2, "width": 16}, r"another model.width \([0-9]*, now 16\), attack.eps \(0.3, now 0.2\): "),
        ({"precision": "bf16"}, "another compute.precision"),
    ):
        with pytest.raises(BadInput, match=said):
            train(config(**changed), dataset, out)


def test_checkpoints_without_their_config_toml_are_continued_with_their_own_options(
    alone: Path, dataset: Path, tmp_path: Path
) -> None:
    """Of a run of which only the checkpoints were copied."""
    out = tmp_path / "run"
    train(config(max_steps=4), dataset, out)
    (out / "config.toml").unlink()
    with pytest.raises(BadInput, match=r"another run.seed \(0, now 5\)"):
        train(config(seed=5), dataset, out)
    train(config(), dataset, out)
    assert len(ranks.curve(out)) == len(ranks.curve(alone))
