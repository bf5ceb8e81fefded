"""Bad input ends a run on all ranks with one line; what may be skipped is counted."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.data.order import split_part
from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Diverged, Outcome
from hpcphotoz.training.run import run_folder
from hpcphotoz.training.trainer import train
from hpcphotoz.world import World
from tests.helpers import ranks
from tests.helpers.datasets import make_stamps, write_stamps
from tests.helpers.training.runs import (
    arguments,
    config,
    training_lines,
)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"z_max": 0.2}, r"shard-00000\.hdf5: z_spec from .* leaves the bins \[0.0, 0.2\)"),
        ({"z_min": 2.0, "z_max": 3.0}, r"shard-00000\.hdf5: z_spec from .* leaves the bins \[2.0, 3.0\)"),
        ({"where": "ebv > 90"}, "no object in its train part"),
    ],
)
def test_objects_are_checked_before_the_trial_of_precisions(
    options: dict[str, object],
    says: str,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hpcphotoz.training.trainer.choose_compute", lambda *_: pytest.fail("a trial"))
    with pytest.raises(BadInput, match=says):
        train(config(**options), dataset, tmp_path / "run")
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert train(config(max_steps=1), dataset, tmp_path / "run") is Outcome.FINISHED


def test_a_refused_run_leaves_what_it_did_not_make(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "old" / "logs").mkdir(parents=True)
    (tmp_path / "old" / "logs" / "job.out").write_text("of a launcher")
    for out in ("notes/deep/run", "old"):
        with pytest.raises(BadInput, match="no object in its train part"):
            train(config(where="ebv > 90"), dataset, tmp_path / out)
    assert not list((tmp_path / "notes").iterdir())  # of the new parents nothing is left
    assert (tmp_path / "old" / "logs" / "job.out").exists()


def test_unknown_redshifts_cannot_be_trained_on(tmp_path: Path) -> None:
    stamps = make_stamps(20)
    stamps.z_spec[:3] = np.nan
    write_stamps(tmp_path / "d", stamps, shard_rows=32)
    with pytest.raises(BadInput, match="3 of the 19 objects have no z_spec"):
        train(config(), tmp_path / "d", tmp_path / "run")
    stamps.z_spec[:] = np.nan
    write_stamps(tmp_path / "none", stamps, shard_rows=32)
    with pytest.raises(
        BadInput, match="none of its 19 objects has a z_spec: train on a spectroscopic sample"
    ):
        train(config(), tmp_path / "none", tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Diverged,
        match=r"of objects \d+.* is not finite at step 12, and 10 steps before it were skipped .*: "
        "lower optimiser.learning_rate or set optimiser.clip_norm, or check the images with",
    ):
        train(config(learning_rate=1e30, warmup_steps=0), dataset, tmp_path / "run")


def test_bad_input_on_several_ranks_is_reported_once(dataset: Path, tmp_path: Path) -> None:
    words = [*arguments(dataset, tmp_path / "run", tmp_path), "--model.z_max", "0.2"]
    results = ranks.run(2, words)
    assert [status for status, _, _ in results] == [2, 2]
    assert sum(error.count("leaves the bins") for _, _, error in results) == 1
    assert not (tmp_path / "run").exists()


def test_a_bad_row_that_one_rank_meets_ends_all_with_one_line(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00001.hdf5", "r+") as file:
        file["images"][5, 0, 0, 0] = np.nan  # its checksum no longer holds
    results = ranks.run(2, arguments(folder, tmp_path / "run", tmp_path))
    assert [status for status, _, _ in results] == [2, 2], results
    assert sum(error.count("row 5: pixels differ") for _, _, error in results) == 1
    assert not any("Traceback" in error for _, _, error in results)


@pytest.mark.slow
def test_a_bad_row_in_the_validation_part_ends_all_with_one_line(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00000.hdf5", "r+") as file:
        row = int(np.flatnonzero(split_part(file["object_id"][...], 0.1, 0.0, seed=0) == 1)[0])
        file["images"][row, 0, 0, 0] = np.nan
    results = ranks.run(2, arguments(folder, tmp_path / "run", tmp_path))
    assert [status for status, _, _ in results] == [2, 2], results
    assert sum(error.count(f"row {row}: pixels differ") for _, _, error in results) == 1
    assert not any("Traceback" in error for _, _, error in results)


def test_damaged_images_are_counted_in_the_metrics_and_trained_around(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00000.hdf5", "r+") as file:
        file["images"][2:6, 0, 0, 0] += 1
    (folder / "shard-00002.hdf5").unlink()
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
    assert start["lost_shards"] == ["shard-00002.hdf5"] and start["lost_objects"] == 11


def test_a_predicate_leaves_out_objects_that_cannot_be_trained_on(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leaves the bins"):
        train(config(z_max=0.2), dataset, tmp_path / "run")
    narrow = config(z_max=0.2, where="z_spec < 0.2")
    assert train(narrow, dataset, tmp_path / "run") is Outcome.FINISHED


@pytest.mark.parametrize("damage", ["not JSON", "[1]", "{}", '{"step": null}'])
def test_a_damaged_line_of_metrics_is_named(damage: str, alone: Path, dataset: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "run"))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("\n".join([*lines[:2], damage, *lines[2:]]) + "\n")
    (out / "provenance.json").write_text("[]")
    with pytest.raises(BadInput, match=r"metrics.jsonl: line 3 is damaged: delete that line"):
        train(config(), dataset, out)
    assert len(json.loads((out / "provenance.json").read_text())["starts"]) == 1


def test_lines_that_a_power_failure_has_emptied_are_dropped(
    alone: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle, with whole lines after them, and at the end, with a line cut off."""
    out = Path(shutil.copytree(alone, tmp_path / "run"))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    emptied = [*lines[:2], "\0" * 500 + lines[2][40:], *lines[3:], "\0" * 99, lines[-1][:30]]
    (out / "metrics.jsonl").write_text("\n".join(emptied))
    assert train(config(), dataset, out) is Outcome.FINISHED
    assert (out / "metrics.jsonl").read_text().splitlines() == [*lines[:2], *lines[3:]]
    assert "metrics.jsonl: line 3 is empty since a power failure: dropped" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\0" * 900, "[run]\nglobal_ba"])
def test_a_damaged_configuration_is_one_line(text: str, alone: Path, dataset: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "run"))
    (out / "config.toml").write_text(text)
    with pytest.raises(BadInput, match=r"run/config.toml: "):
        train(config(), dataset, out)


def test_a_run_folder_is_held_by_one_process(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcphotoz.training.trainer.RunPreparation", lambda *_: pytest.fail("reads the data"))
    held = rf"run: another process is training in it \(.* on .*, process {os.getpid()}, since 20.*\): wait,"
    with run_folder.prepare(tmp_path / "run", World()), pytest.raises(BadInput, match=held):
        train(config(max_steps=1), dataset, tmp_path / "run")
    monkeypatch.undo()
    assert train(config(max_steps=1), dataset, tmp_path / "run") is Outcome.FINISHED


def test_a_run_is_not_written_into_a_dataset(dataset: Path) -> None:
    before = sorted(p.name for p in dataset.iterdir())
    with pytest.raises(BadInput, match="is a dataset"):
        train(config(max_steps=1), dataset, dataset)
    assert sorted(p.name for p in dataset.iterdir()) == before


def test_a_folder_of_other_files_is_refused_before_the_trial_of_precisions(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.log").touch()  # as `tee` begins it
    (tmp_path / "notes.txt").touch()
    for out in (tmp_path, dataset):
        with pytest.raises(BadInput, match=r"holds other files \(notes.txt\)|is a dataset"):
            train(config(precision="auto"), dataset, out)
    assert len(list(tmp_path.iterdir())) == 2
    assert capsys.readouterr().out == ""
    (tmp_path / "notes.txt").unlink()
    assert train(config(max_steps=1), dataset, tmp_path) is Outcome.FINISHED
