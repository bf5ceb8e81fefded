"""Training on copies of the dataset on this node's disk (`train --stage`)."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.manifest import shard_file_problem
from hpcphotoz.errors import BadInput
from hpcphotoz.node.staging import copy_files
from hpcphotoz.provenance import read_starts
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.datasets import make_dataset
from tests.helpers.training.runs import arguments, config

LONG = {"epochs": 4000, "log_steps": 1, "checkpoint_steps": 10**6, "validation": 0}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    folder.mkdir()
    return folder


def left(base: Path) -> list[Path]:
    return sorted(base.glob("*/*"))


def test_the_copies_give_the_same_run_and_only_they_are_read(
    dataset: Path, alone: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def recorded(folder: Path, *shard: Any) -> str | None:
        opened.append(folder)
        return shard_file_problem(folder, *shard)

    monkeypatch.setattr("hpcphotoz.data.read.shard_files.shard_file_problem", recorded)
    out = tmp_path / "run"
    assert train(config(max_steps=3), dataset, out, stage=str(base)) is Outcome.FINISHED
    assert opened and all(folder.is_relative_to(base) for folder in opened)
    assert left(base) == []
    # The run goes on without copies: it is one on the same dataset.
    assert train(config(), dataset, out) is Outcome.FINISHED
    assert ranks.curve(out) == ranks.curve(alone)
    assert {start["data"] for start in read_starts(out)} == {str(dataset.resolve())}


def test_several_datasets(base: Path, tmp_path: Path) -> None:
    data = [make_dataset(tmp_path / name, n=40, shard_rows=16) for name in ("a", "b")]
    both = Datasets.of({data[0]: 0.5, data[1]: 0.5})
    for out, how in (("plain", None), ("staged", str(base))):
        train(config(max_steps=3), both, tmp_path / out, stage=how)
    assert ranks.curve(tmp_path / "plain") == ranks.curve(tmp_path / "staged")
    (start,) = read_starts(tmp_path / "staged")
    assert [one["folder"] for one in start["datasets"]] == [str(folder.resolve()) for folder in data]


def test_a_signal_is_obeyed_while_the_dataset_is_copied(
    dataset: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copied, out = [], tmp_path / "run"

    def signalled(*arguments: Any) -> Iterator[int]:
        for size in copy_files(*arguments):
            copied.append(size)
            os.kill(os.getpid(), signal.SIGUSR2)
            yield size

    monkeypatch.setattr("hpcphotoz.training.staging.staged_loader.copy_files", signalled)
    assert train(config(), dataset, out, stage=str(base)) is Outcome.STOPPED
    assert len(copied) == 1 and left(base) == []
    assert "stopped while it was copied" in capsys.readouterr().out
    monkeypatch.undo()
    assert train(config(max_steps=2), dataset, out, stage=str(base)) is Outcome.FINISHED


def test_a_spent_budget_stops_two_ranks_while_they_copy(dataset: Path, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*arguments(dataset, run, tmp_path, **LONG), "--stage", str(base), "--run.wall_minutes", "1e-9"]
    first, second = ranks.run(2, words)
    assert (first[0], second[0]) == (75, 75), first[2] + second[2]
    assert "stopped while it was copied" in first[1] and left(base) == []


@pytest.mark.slow
def test_two_ranks_share_the_copying_and_give_the_same_curve(
    dataset: Path, alone: Path, base: Path, tmp_path: Path
) -> None:
    words = [*arguments(dataset, tmp_path / "run", tmp_path), "--stage", str(base)]
    first, second = ranks.run(2, words)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert f"{dataset}: copied to {base}/hpcphotoz-{os.geteuid()}/stage-" in first[1] and left(base) == []
    losses = [loss for _, loss in ranks.curve(tmp_path / "run")]
    assert losses == pytest.approx([loss for _, loss in ranks.curve(alone)], rel=1e-5)  # SAME, see runs.py


def test_a_problem_of_one_rank_is_one_line(dataset: Path, base: Path, tmp_path: Path) -> None:
    """The second rank of the node copies the second shard."""
    damaged = make_dataset(tmp_path / "data", n=48, shard_rows=16)
    shard = damaged / "shard-00001.hdf5"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    words = [*arguments(damaged, tmp_path / "run", tmp_path), "--stage", str(base)]
    first, second = ranks.run(2, words)
    assert (first[0], second[0]) == (2, 2)
    said = [line for line in (first[2] + second[2]).splitlines() if "error" in line]
    assert len(said) == 1 and f"{shard}: its content is not that of the manifest's checksum" in said[0]
    assert left(base) == []


def test_a_dataset_that_grows_while_it_is_copied_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(tmp_path / "data", n=48, shard_rows=16)

    def growing(*arguments: Any) -> Iterator[int]:
        yield from copy_files(*arguments)
        with (data / "manifest.json").open("a") as file:
            file.write("\n")

    monkeypatch.setattr("hpcphotoz.training.staging.staged_loader.copy_files", growing)
    with pytest.raises(BadInput, match="was changed while the dataset was copied"):
        train(config(), data, tmp_path / "run", stage=str(base))
    assert left(base) == []


@pytest.mark.slow
def test_what_a_killed_run_leaves_is_removed_by_the_next(dataset: Path, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*arguments(dataset, run, tmp_path, **LONG), "--stage", str(base)]
    running = ranks.start(1, words)
    ranks.wait_until(lambda: len(ranks.curve(run)) >= 2, running)
    (folder,) = (path for path in left(base) if path.is_dir())
    # Another run on this node does not touch it.
    assert train(config(max_steps=2), dataset, tmp_path / "other", stage=str(base)) is Outcome.FINISHED
    assert sorted(path.name for path in (folder / "0").glob("*.json")) == ["manifest.json"]
    running[0].kill()
    ranks.finish(running)
    assert folder.is_dir()
    assert train(config(max_steps=2), dataset, tmp_path / "another", stage=str(base)) is Outcome.FINISHED
    assert left(base) == []


def test_damaged_shards_are_skipped_in_the_copies_as_in_the_dataset(base: Path, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", n=64, shard_rows=16)
    (data / "shard-00002.hdf5").unlink()
    options = config(max_steps=3, damaged="skip", global_batch=8)
    for out, how in (("plain", None), ("staged", str(base))):
        train(options, data, tmp_path / out, stage=how)
    assert ranks.curve(tmp_path / "plain") == ranks.curve(tmp_path / "staged")
    starts = [read_starts(tmp_path / out)[0] for out in ("plain", "staged")]
    assert [start["lost_shards"] for start in starts] == [["shard-00002.hdf5"]] * 2
