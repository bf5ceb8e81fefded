"""What a whole run leaves: the best checkpoint, weights, figures of saves; and from where it goes on."""

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.network import load_network
from hpcphotoz.training.run.recorder import RunRecorder
from hpcphotoz.training.saving.criterion import score
from hpcphotoz.training.saving.writer import CheckpointWriter
from hpcphotoz.training.trainer import train
from tests.helpers.training.runs import PER_EPOCH, assert_same_curve, config, validations


def saves(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("part") == "checkpoint"]


def best_of(run: Path) -> int:
    """Step of the first validation with the least sigma_MAD."""
    return int(min(validations(run), key=lambda line: line["sigma_mad"])["step"])


def assert_best(run: Path) -> None:
    (path,) = (run / "best").iterdir()
    assert checkpoint.step_of(path) == best_of(run)
    for name, source in (("best", path), ("last", checkpoint.latest(run) or run)):
        weights = load_network(run / "weights" / f"{name}.safetensors")
        theirs = load_network(source)
        assert (weights.step, weights.name, weights.config) == (theirs.step, theirs.name, theirs.config)
        ours, expected = weights.module.state_dict(), theirs.module.state_dict()
        assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_a_run_keeps_the_best_checkpoint_and_weights(alone: Path) -> None:
    assert_best(alone)


@pytest.mark.parametrize("stop_at", [7, PER_EPOCH * 2, 18])
def test_a_resumed_run_keeps_the_same_best(stop_at: int, alone: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(max_steps=stop_at), dataset, out)
    train(config(), dataset, out)
    assert_best(out)
    assert best_of(out) == best_of(alone)


class Killed(BaseException):
    """Ends a run as a kill would, with nothing written after it."""


@pytest.mark.parametrize("stage", ["best", "weights of the best", "weights of the newest"])
def test_what_a_kill_cuts_off_of_a_save_is_written_by_the_next_start(
    stage: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run that has taken its last step, and saves no more."""
    out, once = tmp_path / "run", config(epochs=1, checkpoint_steps=PER_EPOCH)
    save, write = CheckpointWriter.save, CheckpointWriter._write_weights

    def cut_off(self: CheckpointWriter, state: Callable[[], Any], step: int, best: bool = False) -> None:
        if best and stage == "best":
            self.wait()
            raise Killed
        save(self, state, step, best)
        self.wait()

    def without(self: CheckpointWriter, state: dict[str, Any], name: str) -> None:
        if not stage.endswith({"best": "best", "last": "newest"}[name]):
            write(self, state, name)

    with monkeypatch.context() as patches, suppress(Killed):
        patches.setattr(CheckpointWriter, "save", cut_off)
        patches.setattr(CheckpointWriter, "_write_weights", without)
        train(once, dataset, out)
    assert checkpoint.step_of(checkpoint.paths(out)[0]) == PER_EPOCH
    assert not {path.name for path in (out / "weights").glob("*")} >= {"best.safetensors", "last.safetensors"}
    train(once, dataset, out)
    assert_best(out)
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".pt", ".safetensors")
    }
    train(once, dataset, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is written a second time"
    shutil.copy(checkpoint.path_of(out, "best", PER_EPOCH), checkpoint.path_of(out, "best", 1))
    train(once, dataset, out)
    assert_best(out)  # the best before was not removed yet


def test_every_save_has_a_line_of_metrics(alone: Path) -> None:
    lines = saves(alone)
    newest = [line["step"] for line in lines if line["folder"] == "checkpoints"]
    assert newest == [*range(3, 4 * PER_EPOCH, 3), 4 * PER_EPOCH], "every third step, and the last"
    for line in lines:
        assert line["epoch"] == (line["step"] - 1) // PER_EPOCH
        assert 0 <= line["waited_s"] <= line["blocked_s"] <= line["total_s"]
    path = checkpoint.path_of(alone, "checkpoints", 4 * PER_EPOCH)
    assert [line["bytes"] for line in lines if line["step"] == 4 * PER_EPOCH][0] == path.stat().st_size


def test_a_moved_run_folder_goes_on(alone: Path, dataset: Path, tmp_path: Path) -> None:
    train(config(max_steps=7), dataset, tmp_path / "run")
    moved = tmp_path / "elsewhere" / "another name"
    moved.parent.mkdir()
    shutil.move(tmp_path / "run", moved)
    assert train(config(), dataset, moved) is Outcome.FINISHED
    assert_same_curve(moved, alone, 0.0)
    assert not (tmp_path / "run").exists() and load_network(moved / "weights/last.safetensors").step == 20


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    alone: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(config(max_steps=6), dataset, out)
    for path in checkpoint.paths(out):
        if checkpoint.step_of(path) == 6:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
    capsys.readouterr()
    train(config(), dataset, out)
    assert "step-00000006.pt: damaged: its content does not have its checksum" in capsys.readouterr().err
    assert_same_curve(out, alone, 0.0)


def test_a_run_of_which_nothing_loads_keeps_what_it_has(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(max_steps=3), dataset, out)
    metrics = (out / "metrics.jsonl").read_bytes()
    for path in checkpoint.paths(out):
        path.write_bytes(b"torn")
    with pytest.raises(BadInput, match="none of its 1 checkpoints loads"):
        train(config(), dataset, out)
    assert (out / "metrics.jsonl").read_bytes() == metrics and len(checkpoint.paths(out)) == 1


def test_a_run_whose_checkpoints_are_gone_keeps_its_record(dataset: Path, tmp_path: Path) -> None:
    """Scratch file systems remove old large files first."""
    out = tmp_path / "run"
    train(config(max_steps=3), dataset, out)
    metrics = (out / "metrics.jsonl").read_bytes()
    for path in checkpoint.paths(out):
        path.unlink()
    with pytest.raises(
        BadInput, match="its checkpoints are gone, the last of step 3: restore one in checkpoints"
    ):
        train(config(), dataset, out)
    assert (out / "metrics.jsonl").read_bytes() == metrics and not checkpoint.paths(out)


def test_a_resume_says_where_it_goes_on(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(config(max_steps=3), dataset, out)
    assert "resumed" not in capsys.readouterr().out
    train(config(max_steps=4), dataset, out)
    assert f"{out}: resumed at step 3 of 4 from checkpoints/step-00000003.pt" in capsys.readouterr().out


def save_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a write begin only when the run has ended its last step."""
    ended, save, close = threading.Event(), checkpoint.save, RunRecorder.close

    def late(*arguments: Any) -> Path:
        assert ended.wait(60)
        return save(*arguments)

    def closing(recorder: RunRecorder) -> None:
        ended.set()
        close(recorder)

    monkeypatch.setattr(checkpoint, "save", late)
    monkeypatch.setattr(RunRecorder, "close", closing)


def test_the_end_waits_for_the_checkpoint_that_is_being_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_at_the_end(monkeypatch)
    assert train(config(max_steps=2), dataset, tmp_path / "run") is Outcome.FINISHED
    found = checkpoint.newest(tmp_path / "run")
    assert found is not None and found[1]["step"] == 2
    assert [line["step"] for line in saves(tmp_path / "run")] == [2]


def test_an_exception_in_training_does_not_lose_the_checkpoint_that_is_being_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    save_at_the_end(monkeypatch)
    monkeypatch.setattr("hpcphotoz.training.loop.validate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config(checkpoint_steps=PER_EPOCH), dataset, tmp_path / "run")
    found = checkpoint.newest(tmp_path / "run")
    assert found is not None and found[1]["step"] == PER_EPOCH


@pytest.mark.parametrize(
    ("by", "figures", "found"),
    [
        ("clean", {"sigma_mad": 0.1}, 0.1),
        ("clean", {"sigma_mad_adversarial": 0.1}, None),
        ("robust", {"sigma_mad": 0.1, "sigma_mad_adversarial": 0.3}, 0.3),
        ("robust", {"sigma_mad": 0.1}, None),
        ("weighted", {"sigma_mad": 0.1, "sigma_mad_adversarial": 0.3}, 0.75 * 0.1 + 0.25 * 0.3),
        ("weighted", {"sigma_mad": float("nan"), "sigma_mad_adversarial": 0.3}, None),
    ],
)
def test_the_criterion(by: str, figures: dict[str, float], found: float | None) -> None:
    expected = found if found is None else pytest.approx(found)
    assert score(figures, config(criterion=by, fraction=0.25)) == expected


def test_weights_of_a_later_step_outlive_their_damaged_checkpoint(
    alone: Path, dataset: Path, tmp_path: Path
) -> None:
    """Until the run has come to that step again."""
    out = tmp_path / "run"
    shutil.copytree(alone, out)
    for path in checkpoint.paths(out)[:1]:
        path.write_bytes(path.read_bytes()[:-100])
    (out / "best").rename(tmp_path / "best")
    at = checkpoint.step_of(checkpoint.paths(out)[1])
    assert 0 < at < 4 * PER_EPOCH
    train(config(max_steps=at), dataset, out)
    assert load_network(out / "weights/last.safetensors").step == 4 * PER_EPOCH
    train(config(), dataset, out)
    assert load_network(out / "weights/last.safetensors").step == 4 * PER_EPOCH


def test_another_criterion_is_told_what_the_best_checkpoint_is(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(max_steps=1), dataset, tmp_path / "run")
    assert "run.criterion" not in capsys.readouterr().out
    train(config(max_steps=2, criterion="robust"), dataset, tmp_path / "run")
    assert (
        "run.criterion robust, before clean: best/ keeps the best by clean until" in capsys.readouterr().out
    )


def test_a_resumed_run_knows_how_long_its_last_save_took(alone: Path, tmp_path: Path) -> None:
    """The wall-time budget leaves room for a save before the first one of this process."""
    out = Path(shutil.copytree(alone, tmp_path / "run"))
    recorder = RunRecorder(out, 4 * PER_EPOCH, config(), writes=True)
    recorder.close()
    newest = [line for line in saves(out) if line["folder"] == "checkpoints"]
    assert recorder.save_s == newest[-1]["total_s"] > 0
