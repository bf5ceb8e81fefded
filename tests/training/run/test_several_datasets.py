"""Training on several datasets: one loss curve on any number of ranks, resumed anywhere, recorded."""

import json
import signal
from pathlib import Path

import pytest

import hpcphotoz
from hpcphotoz.__main__ import main
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.preparation import check_folders
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.data.streams import flip_byte
from tests.helpers.datasets import make_stamps, write_stamps
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config, validations


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    folder = tmp_path_factory.mktemp("two")
    folders = [
        write_stamps(folder / name, make_stamps(n, seed=k))
        for k, (name, n) in enumerate([("a", 50), ("b", 30)])
    ]
    return Datasets(tuple(folders), (0.7, 0.3))


@pytest.fixture(scope="module")
def mixed(two: Datasets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank, with which others are compared."""
    out = tmp_path_factory.mktemp("runs") / "mixed"
    assert train(config(), two, out) is Outcome.FINISHED
    return out


def words(two: Datasets, out: Path, tmp_path: Path) -> list[str]:
    given = arguments(Path("DATA"), out, tmp_path)
    place = given.index("DATA")
    return [*given[:place], *str(two).split(), *given[place + 1 :]]


@pytest.mark.slow
def test_ranks_have_one_loss_curve(two: Datasets, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = ranks.run(2, words(two, out, tmp_path))
    assert [status for status, _, _ in results] == [0, 0], results
    assert_same_curve(out, mixed, SAME)
    assert validations(out)[-1]["n"] == validations(mixed)[-1]["n"] > 3
    said = "every global batch of 16 objects holds 11 of"
    assert [text.count(said) for _, text, _ in results] == [1, 0]


@pytest.mark.parametrize("stop_at", [3, 5, 8])
def test_stopped_and_resumed_gives_the_same_bits(
    stop_at: int, two: Datasets, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(config(max_steps=stop_at), two, out)
    train(config(), two, out)
    assert_same_curve(out, mixed, 0.0)


@pytest.mark.slow
def test_killed_and_resumed_on_another_number_of_ranks(two: Datasets, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = ranks.start(2, words(two, out, tmp_path))
    ranks.wait_until(lambda: len(ranks.curve(out)) >= 6, running)
    for process in running:
        process.send_signal(signal.SIGKILL)
    ranks.finish(running)
    train(config(), two, out)
    assert_same_curve(out, mixed, SAME)


def test_the_run_records_the_datasets(two: Datasets, mixed: Path) -> None:
    start = json.loads((mixed / "provenance.json").read_text())["starts"][-1]
    assert start["data"] == str(two.resolve())
    for entry, folder, weight, share in zip(start["datasets"], two.folders, (0.7, 0.3), (11, 5), strict=True):
        assert entry["folder"] == str(folder.resolve())
        assert (entry["weight"], entry["objects_of_a_batch"]) == (weight, share)
        assert len(entry["manifest_sha256"]) == 64 and entry["objects"] > 20
    state = checkpoint.load(checkpoint.latest(mixed))  # type: ignore[arg-type]
    assert state["manifest_sha256"] == start["manifest_sha256"] == two.read_manifest(16).sha256


def test_other_weights_or_order_are_another_run(two: Datasets, mixed: Path) -> None:
    others = [(two.folders, (0.5, 0.5)), (two.folders[::-1], (0.3, 0.7)), (two.folders[:1], (1.0,))]
    for folders, weights in others:
        with pytest.raises(
            BadInput, match="was trained on (other datasets, or with other weights|another data)"
        ):
            train(config(), Datasets(folders, weights), mixed)
        with pytest.raises(BadInput, match="was trained on"):
            check_folders(TrainJob.of(config(), Datasets(folders, weights), mixed))
    check_folders(TrainJob.of(config(), two, mixed))


def test_a_launched_job_keeps_folders_and_weights(two: Datasets, tmp_path: Path) -> None:
    job = TrainJob.of(config(), two, tmp_path / "run")
    assert Datasets.of(job.data) == two.absolute()
    with pytest.raises(BadInput, match="weight"):
        check_folders(TrainJob.of(config(global_batch=1), two, tmp_path / "run"))


def test_a_mapping_trains_as_the_command_line_does(
    two: Datasets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = {str(folder): weight for folder, weight in zip(two.folders, two.weights, strict=True)}
    hpcphotoz.train(config(max_steps=2), mapping, tmp_path / "api", device="cpu")
    line = [*words(two, tmp_path / "line", tmp_path), "--run.max_steps", "2"]
    assert main(line) == 0
    assert_same_curve(tmp_path / "line", tmp_path / "api", 0.0)
    assert capsys.readouterr().out.count("every global batch of 16 objects holds 11 of") == 2


def test_one_dataset_with_a_weight_trains_as_without(two: Datasets, tmp_path: Path) -> None:
    (a, _), short = two.folders, config(max_steps=3)
    train(short, a, tmp_path / "plain")
    train(short, Datasets.parse([f"{a}:0.4"]), tmp_path / "weighted")
    assert_same_curve(tmp_path / "weighted", tmp_path / "plain", 0.0)
    starts = [
        json.loads((tmp_path / name / "provenance.json").read_text())["starts"][0]
        for name in ("plain", "weighted")
    ]
    assert starts[0]["data"] == starts[1]["data"] == str(a) and "datasets" not in starts[1]


@pytest.mark.slow
def test_damage_in_the_second_dataset_ends_all_ranks_with_its_name(two: Datasets, tmp_path: Path) -> None:
    broken = flip_byte(two.folders[1], tmp_path / "broken", "shard-00001.hdf5", 3)
    results = ranks.run(2, words(Datasets((two.folders[0], broken), two.weights), tmp_path / "run", tmp_path))
    assert [status for status, _, _ in results] == [2, 2], results
    assert sum(error.count("broken/shard-00001.hdf5") for _, _, error in results) == 1


def test_the_labels_of_all_datasets_are_checked(two: Datasets, tmp_path: Path) -> None:
    stamps = make_stamps(30, seed=5)
    stamps.z_spec[4] = 0.9
    high = write_stamps(tmp_path / "high", stamps)
    with pytest.raises(BadInput, match=r"high/shard-00000\.hdf5: z_spec from .* leaves the bins"):
        train(config(), Datasets((two.folders[0], high), (1, 1)), tmp_path / "run")
