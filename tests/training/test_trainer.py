"""One run, any machine: the same loss curve on 1, 2 and 3 ranks, and for a run killed anywhere and
resumed.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Diverged, Outcome
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.network import load_network
from hpcphotoz.training.trainer import implausible_options, train
from tests.helpers import ranks
from tests.helpers.datasets import make_dataset, make_stamps

# 75 objects, 67 or so to train on, batches of 16: the last batch of an epoch is a partial one, and 3 ranks
# share unevenly.
OPTIONS: dict[str, object] = {
    **{"bins": 20, "width": 8},
    **{"block_rows": 8, "window_blocks": 3, "validation": 0.1},
    **{"epochs": 4, "global_batch": 16, "log_steps": 1, "checkpoint_steps": 3},
    **{"warmup_steps": 2, "learning_rate": 3e-3, "precision": "fp32"},
    **{"fraction": 0.5, "eps": 0.3, "steps": 2},
}

# Sums over 16 objects in another order and in several parts: a few float32 roundings (6e-8) a step in the
# loss, fed back through Adam. Seen after 20 steps: 2e-7 on 3 ranks. A wrong sample, augmentation, start or
# weight changes the loss of a step by more than 1e-2.
SAME = 1e-5


def config(**options: object) -> Config:
    return configure("test", **{**OPTIONS, **options})


def arguments(dataset: Path, out: Path, tmp_path: Path, **options: object) -> list[str]:
    from hpcphotoz.config.load import to_toml

    path = tmp_path / "config.toml"
    path.write_text(to_toml(config(**options)))
    return ["train", str(path), "--data", str(dataset), "--out", str(out)]


def assert_same_curve(run: Path, reference: Path, tolerance: float) -> None:
    ours, theirs = ranks.curve(run), ranks.curve(reference)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert max(abs(a - b) for (_, a), (_, b) in zip(ours, theirs, strict=True)) <= tolerance


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one rank that the others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert train(config(), dataset, out) is Outcome.FINISHED
    return out


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


@pytest.mark.parametrize("world_size", [2, 3])
def test_same_loss_curve_on_more_ranks(world_size: int, alone: Path, dataset: Path, tmp_path: Path) -> None:
    for status, _, error in ranks.run(world_size, arguments(dataset, tmp_path / "run", tmp_path)):
        assert status == 0, error
    assert_same_curve(tmp_path / "run", alone, SAME)
    assert len(list((tmp_path / "run" / "logs").glob("rank-*.log"))) == world_size


def test_ranks_that_get_no_object_of_a_batch_take_part(dataset: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    train(config(global_batch=2, max_steps=6, log_steps=1), dataset, one)
    for status, _, error in ranks.run(3, arguments(dataset, three, tmp_path, global_batch=2, max_steps=6)):
        assert status == 0, error
    assert_same_curve(three, one, SAME)


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


@pytest.mark.parametrize("logged", [2, 7])
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


def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    alone: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(dataset, out, tmp_path, epochs=4)
    running = ranks.start(2, words)
    ranks.wait_until(lambda: len(ranks.curve(out)) >= 1, running)
    running[1].send_signal(signal.SIGUSR2)
    results = ranks.finish(running)
    assert [status for status, _, _ in results] == [0, 0], results
    if "finished at step" not in results[0][1]:  # the signal may come too late to matter on a fast machine
        assert "SIGUSR2 received: saved and stopped after step" in results[0][1]
        steps = [step for step, _ in ranks.curve(out)]
        state = checkpoint.load(checkpoint.latest(out))  # type: ignore[arg-type]
        assert state["step"] == steps[-1]
    train(config(), dataset, out)
    assert_same_curve(out, alone, SAME)


PER_EPOCH = 5  # steps: 67 objects in batches of 16


def validations(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("part") == "validation"]


def ask_to_stop(monkeypatch: pytest.MonkeyPatch, at_look: int) -> None:
    """A request to stop that comes before the flag is looked at for the `at_look`-th time."""
    looks = iter(range(1, 10**6))
    reason = property(lambda _: "asked by a test" if next(looks) >= at_look else "")
    monkeypatch.setattr("hpcphotoz.training.run.signals.StopRequest.reason", reason)


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
    """Saves, and notes the steps."""

    def __init__(self, save: Callable[..., Path]) -> None:
        self._save, self.steps = save, list[int]()

    def __call__(self, run: Path, state: checkpoint.State, keep: int) -> Path:
        self.steps.append(state["step"])
        return self._save(run, state, keep)


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
    assert [status for status, _, _ in results] == [0, 0], results
    results = ranks.run(2, words)
    assert [status for status, _, _ in results] == [0, 0], results
    assert len(ranks.curve(out)) == 2 * PER_EPOCH
    assert [line["epoch"] for line in validations(out)] == [0, 1]


def test_the_wall_time_budget_stops_cleanly(dataset: Path, tmp_path: Path) -> None:
    assert train(config(wall_minutes=1e-6), dataset, tmp_path / "run") is Outcome.STOPPED
    assert len(ranks.curve(tmp_path / "run")) == 1


def test_signal_handlers_are_put_back(dataset: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    train(config(max_steps=1), dataset, tmp_path / "run")
    assert signal.getsignal(signal.SIGUSR2) is before


def test_a_torn_checkpoint_is_passed_over(alone: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(max_steps=6), dataset, out)
    newest = checkpoint.latest(out)
    assert newest is not None and newest.name == "step-00000006.pt"
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    train(config(), dataset, out)
    assert_same_curve(out, alone, 0.0)


def test_only_the_newest_checkpoints_are_kept(alone: Path) -> None:
    names = sorted(p.name for p in (alone / "checkpoints").iterdir())
    assert len(names) == 2 and names[-1] == f"step-{len(ranks.curve(alone)):08d}.pt"


def test_a_failed_write_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"step": 1}, 2)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(BadInput, match="disk full"):
        checkpoint.save(tmp_path, {"step": 2}, 2)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and checkpoint.load(newest)["step"] == 1


def test_the_run_folder_is_complete(alone: Path, dataset: Path) -> None:
    from hpcphotoz.config import load as configuration

    assert configuration.load(str(alone / "config.toml")) == config()
    start = json.loads((alone / "provenance.json").read_text())["starts"][0]
    assert start["world_size"] == 1 and start["data"] == str(dataset.resolve()) and start["torch"]


@pytest.mark.parametrize("damage", ["not JSON", "[1]", "{}", '{"step": null}'])
def test_a_damaged_line_of_metrics_is_named(damage: str, alone: Path, dataset: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "run"))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("\n".join([*lines[:2], damage, *lines[2:]]) + "\n")
    (out / "provenance.json").write_text("[]")
    with pytest.raises(BadInput, match=r"metrics.jsonl: line 3 is damaged: delete it"):
        train(config(), dataset, out)
    assert len(json.loads((out / "provenance.json").read_text())["starts"]) == 1


def test_another_configuration_does_not_continue_a_run(alone: Path, dataset: Path) -> None:
    with pytest.raises(BadInput, match=r"another optimiser.learning_rate \(0.003, now 0.5\)"):
        train(config(learning_rate=0.5), dataset, alone)


def test_another_dataset_does_not_continue_a_run(dataset: Path, tmp_path: Path) -> None:
    train(config(max_steps=2), dataset, tmp_path / "run")
    other = make_dataset(tmp_path / "other", n=40, shard_rows=20)
    with pytest.raises(BadInput, match="resume on the same dataset"):
        train(config(), other, tmp_path / "run")


def test_a_batch_or_a_warm_up_longer_than_the_run_is_warned_of() -> None:
    asked = config(epochs=2, global_batch=101, warmup_steps=3, eps_warmup_steps=3, k_warmup_steps=2)
    batch, warm_up, of_eps = implausible_options(asked, 100, 2)
    assert batch == "run.global_batch 101: the training part holds 100 objects: an epoch is one step"
    assert warm_up.startswith("optimiser.warmup_steps 3: all 2 epochs are 2 steps")
    assert of_eps.startswith("adversarial.eps_warmup_steps 3: ")
    assert not implausible_options(config(epochs=2, global_batch=100, warmup_steps=2), 100, 2)


def test_a_warning_of_a_long_warm_up_is_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(max_steps=1, warmup_steps=10_000), dataset, tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "warmup_steps" in line]
    assert len(lines) == 1 and lines[0].startswith("hpcphotoz: warning: optimiser.warmup_steps 10000: ")


def test_labels_must_lie_in_the_bins(dataset: Path, tmp_path: Path) -> None:
    narrow = config(z_max=0.2)
    with pytest.raises(BadInput, match=r"shard-00000\.h5: z_spec from .* leaves the bins \[0.0, 0.2\)"):
        train(narrow, dataset, tmp_path / "run")


def test_unknown_redshifts_cannot_be_trained_on(tmp_path: Path) -> None:
    from dataclasses import replace

    import numpy as np

    from hpcphotoz.data.format.manifest import Header
    from hpcphotoz.data.format.writer import DatasetWriter

    stamps = make_stamps(20)
    with DatasetWriter(tmp_path / "d", Header(tuple("ugriz"), 16, 0.396), 32, {}) as writer:
        writer.append(replace(stamps, z_spec=np.where(np.arange(20) < 3, np.nan, stamps.z_spec)))
    with pytest.raises(BadInput, match="3 of the 19 objects have no z_spec"):
        train(config(), tmp_path / "d", tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Diverged, match=r"not finite at step \d+: lower optimiser.learning_rate, or check the images with"
    ):
        train(config(learning_rate=1e30, warmup_steps=0), dataset, tmp_path / "run")


def test_bad_input_on_several_ranks_is_said_once(dataset: Path, tmp_path: Path) -> None:
    words = [*arguments(dataset, tmp_path / "run", tmp_path), "--model.z_max", "0.2"]
    results = ranks.run(2, words)
    assert [status for status, _, _ in results] == [2, 2]
    assert sum(error.count("leaves the bins") for _, _, error in results) == 1


def test_a_bad_row_that_one_rank_meets_ends_all_with_one_line(dataset: Path, tmp_path: Path) -> None:
    import h5py
    import numpy as np

    folder = shutil.copytree(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        file["images"][5, 0, 0, 0] = np.nan  # its checksum no longer holds
    results = ranks.run(2, arguments(folder, tmp_path / "run", tmp_path))
    assert [status for status, _, _ in results] == [2, 2], results
    assert sum(error.count("row 5: pixels differ") for _, _, error in results) == 1
    assert not any("Traceback" in error for _, _, error in results)


def test_a_bad_row_in_the_validation_part_too(dataset: Path, tmp_path: Path) -> None:
    import h5py
    import numpy as np

    from hpcphotoz.data.order import split_part

    folder = shutil.copytree(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        row = int(np.flatnonzero(split_part(file["object_id"][...], 0.1, 0.0, seed=0) == 1)[0])
        file["images"][row, 0, 0, 0] = np.nan
    results = ranks.run(2, arguments(folder, tmp_path / "run", tmp_path))
    assert [status for status, _, _ in results] == [2, 2], results
    assert sum(error.count(f"row {row}: pixels differ") for _, _, error in results) == 1
    assert not any("Traceback" in error for _, _, error in results)


def training_lines(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_damaged_images_are_counted_in_the_metrics_and_trained_around(dataset: Path, tmp_path: Path) -> None:
    import h5py

    folder = shutil.copytree(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file["images"][2:6, 0, 0, 0] += 1
    (folder / "shard-00002.h5").unlink()
    options = config(validation=0.0, damaged="skip", epochs=2)
    assert train(options, folder, tmp_path / "run") is Outcome.FINISHED
    lines = training_lines(tmp_path / "run")
    assert len(lines) == 2 * 4, "64 objects in batches of 16"
    assert sum(line["skipped"] for line in lines[:4]) == 4, "checked and left out on the first pass"
    assert {line["lost"] for line in lines} == {11}
    assert all(
        line["loader_headroom"] > 0 and 0 <= line["data_wait"] <= 1
        for line in lines
        if line["loader_headroom"]
    )
    start = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"][0]
    assert start["lost_shards"] == ["shard-00002.h5"] and start["lost_objects"] == 11


@pytest.mark.parametrize("storage", ["float16", "int16"])
def test_smaller_storage_trains_to_the_same_loss_but_for_its_rounding(tmp_path: Path, storage: str) -> None:
    from hpcphotoz.data.format.manifest import Header
    from hpcphotoz.data.format.writer import DatasetWriter

    for kind in ("float32", storage):
        with DatasetWriter(tmp_path / kind, Header(tuple("ugriz"), 16, 0.396, kind), 32, {}) as writer:
            writer.append(make_stamps(75))
        train(config(max_steps=6), tmp_path / kind, tmp_path / f"run-{kind}")
    ours, theirs = (ranks.curve(tmp_path / f"run-{kind}") for kind in (storage, "float32"))
    # A pixel moves by 1/64 sky sigma at most, a thirtieth of what the attack of 0.3 moves it; seen: 4e-4.
    assert 0 < max(abs(a - b) for (_, a), (_, b) in zip(ours, theirs, strict=True)) < 5e-3


def test_a_predicate_leaves_out_what_cannot_be_trained_on(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leaves the bins"):
        train(config(z_max=0.2), dataset, tmp_path / "run")
    narrow = config(z_max=0.2, where="z_spec < 0.2")
    assert train(narrow, dataset, tmp_path / "run") is Outcome.FINISHED


def test_a_run_of_the_older_order_is_not_resumed_but_its_split_is_still_known(
    dataset: Path, tmp_path: Path
) -> None:
    """Its parts were drawn by the training seed: with another split its held-out objects would leak."""
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
    assert load_network(tmp_path / "run").config.data.split_seed == 3


def test_a_run_folder_is_held_by_one_process(dataset: Path, tmp_path: Path) -> None:
    from hpcphotoz.training.run import run_folder
    from hpcphotoz.world import World

    with (
        run_folder.prepare(tmp_path / "run", config(), World()),
        pytest.raises(BadInput, match="another process is training in it"),
    ):
        train(config(max_steps=1), dataset, tmp_path / "run")
    assert train(config(max_steps=1), dataset, tmp_path / "run") is Outcome.FINISHED


def test_a_run_is_not_written_into_a_dataset(dataset: Path) -> None:
    before = sorted(p.name for p in dataset.iterdir())
    with pytest.raises(BadInput, match="is a dataset"):
        train(config(max_steps=1), dataset, dataset)
    assert sorted(p.name for p in dataset.iterdir()) == before
