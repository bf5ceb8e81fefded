"""A network trained on several datasets is used on each of them, and its test parts were never trained on."""

import json
from pathlib import Path

import h5py
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.config.load import load
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.read.object_ids import read_object_ids
from hpcphotoz.data.stream.mixture import open_training_stream, open_validation_stream
from tests.helpers.commands import TINY, fails
from tests.helpers.datasets import make_dataset, make_stamps, write_stamps

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")


def command(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two datasets, which share ten objects, and a run on both."""
    folder = tmp_path_factory.mktemp("several")
    first, second = make_stamps(90, seed=1), make_stamps(60, seed=2)
    second.object_id[:10] = first.object_id[20:30]
    data = [f"{write_stamps(folder / name, s)}:1" for name, s in (("a", first), ("b", second))]
    assert (
        command("train", "standard", "--data", *data, "--out", folder / "both", *TINY, "--data.test", 0.3)
        == 0
    )
    return folder


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_test_part_of_each_dataset_was_never_trained_on(
    base: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pz.hdf5"
    words = [base / "both", "--data", base / name, "--part", "test"]
    assert command("predict", *words, "--out", out) == 0
    with h5py.File(out) as file:
        ids = set(file["ancil/object_id"][...].tolist())
    assert command("attack", *words, "--out", tmp_path / "attacked", "--method", "fgsm") == 0
    attacked = read_object_ids(tmp_path / "attacked", read_manifest(tmp_path / "attacked"))
    report = tmp_path / "report"
    assert command("evaluate", *words, "--out", report, "--attacks", "fgsm", "--eps", 0.1) == 0
    assert "warning" not in capsys.readouterr().err
    tree = json.loads((report / "metrics.json").read_text())
    assert set(attacked.tolist()) == ids and tree["both"]["clean"]["n"] == len(ids) > 10

    config, both = load(str(base / "both" / "config.toml")), Datasets((base / "a", base / "b"), (1, 1))
    how = {"global_batch": config.run.global_batch, "seed": config.run.seed}
    used = [
        number
        for stream in (
            open_training_stream(both, config.data, **how),
            open_validation_stream(both, config.data, **how),
        )
        for batch in stream.epoch(0)
        for number in batch.object_id.tolist()
    ]
    own = set(read_object_ids(base / name, read_manifest(base / name)).tolist())
    assert not ids & set(used) and ids | (own & set(used)) == own


def test_each_dataset_is_known_as_one_of_the_training(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_dataset(tmp_path / "other", n=60, shard_rows=60)
    words = ["evaluate", base / "both", "--out", tmp_path / "report", "--attacks", "fgsm", "--eps", 0.1]

    def warnings(*more: object) -> list[str]:
        capsys.readouterr()
        assert command(*words, *more) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "warning" in line]

    for name in "ab":
        (line,) = warnings("--data", base / name)
        assert line.endswith(f"{base / name}: its metrics are of objects seen in training; use --part test")
    (line,) = warnings("--data", other, "--part", "test")
    assert "'both' was trained on another dataset: --part takes" in line
    assert warnings("--data", other) == []


@pytest.mark.parametrize("name", ["evaluate", "attack", "predict"])
def test_without_a_dataset_those_of_the_training_are_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = base / "both"
    trained = f"({run} was trained on {base / 'a'} and {base / 'b'}; --part test takes what was held back)"
    fails(
        capsys, [name, run, "--out", tmp_path / "x"], f"--data is missing: give one dataset folder {trained}"
    )
    fails(capsys, [name, tmp_path, "--out", tmp_path / "x"], "--data is missing: give one dataset folder")
    fails(capsys, [name, run, "--data", base / "a:1", "--out", tmp_path / "x"], "a:1")
