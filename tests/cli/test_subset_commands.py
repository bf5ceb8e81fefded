"""--part and --where of evaluate, attack and predict select the right objects, and are recorded."""

import json
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data import order
from hpcphotoz.data.format.manifest import read_manifest
from tests.helpers.commands import TINY, fails
from tests.helpers.datasets import load, make_dataset, make_stamps, write_stamps

N, VALIDATION, TEST, SEED = 300, 0.1, 0.3, 4
SPLIT = {"validation": VALIDATION, "test": TEST, "seed": SEED}
WORDS = ["--data.validation", VALIDATION, "--data.test", TEST, "--data.split_seed", SEED]
PREDICATE = "z_spec < 0.2"


def command(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a dataset, a run with a test part and a run without."""
    base = tmp_path_factory.mktemp("subset")
    data = make_dataset(base / "set", n=N, shard_rows=120)
    assert command("train", "standard", "--data", data, "--out", base / "split", *TINY, *WORDS) == 0
    assert command("train", "standard", "--data", data, "--out", base / "plain", *TINY) == 0
    return base


def meant(data: Path, part: str, low: bool) -> npt.NDArray[np.int64]:
    """Ids of the objects of a part, in stored order; of low redshift only where asked."""
    content = load(data)
    keep = np.ones(N, np.bool_)
    if part != "all":
        number = ("train", "validation", "test").index(part)
        keep &= order.split_part(content.object_id, VALIDATION, TEST, SEED) == number
    return content.object_id[keep & (content.z_spec < 0.2) if low else keep]


CASES = pytest.mark.parametrize(
    ("part", "where"),
    [("test", ""), ("validation", ""), ("train", PREDICATE), ("test", PREDICATE), ("all", PREDICATE)],
)


def record(part: str, where: str) -> dict[str, object]:
    return {"part": part, "where": where, **({} if part == "all" else {"split": SPLIT})}


def chosen(where: str) -> list[str]:
    return ["--where", where] if where else []


@CASES
def test_predict(folder: Path, tmp_path: Path, part: str, where: str) -> None:
    out = tmp_path / "pz.hdf5"
    words = ["predict", folder / "split", "--data", folder / "set", "--out", out]
    assert command(*words, "--part", part, *chosen(where)) == 0
    with h5py.File(out) as file:
        ids = file["ancil/object_id"][...]
        assert file["data/pdfs"].shape == (len(ids), 20)
        facts = json.loads(file.attrs["dataset"])
    np.testing.assert_array_equal(ids, meant(folder / "set", part, bool(where)))
    assert 0 < len(ids) < N
    assert facts["subset"] == record(part, where)


@CASES
def test_attack(folder: Path, tmp_path: Path, part: str, where: str) -> None:
    out = tmp_path / "out"
    words = ["attack", folder / "split", "--data", folder / "set", "--out", out, "--method", "fgsm"]
    assert command(*words, "--part", part, *chosen(where)) == 0
    manifest, attacked, source = read_manifest(out), load(out), load(folder / "set")
    np.testing.assert_array_equal(attacked.object_id, meant(folder / "set", part, bool(where)))
    assert manifest.provenance["source_subset"] == {**record(part, where), "limit": None}
    rows = np.searchsorted(source.object_id, attacked.object_id)
    change = np.abs(attacked.images - source.images[rows]) / source.sky_sigma[rows][:, :, None, None]
    assert 0.09 < change.max() < 0.101


@CASES
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_evaluate(folder: Path, tmp_path: Path, part: str, where: str) -> None:
    words = ["evaluate", folder / "split", "--data", folder / "set", "--out", tmp_path, "--attacks", "fgsm"]
    assert command(*words, "--eps", 0.1, "--part", part, *chosen(where)) == 0
    tree = json.loads((tmp_path / "metrics.json").read_text())
    n = len(meant(folder / "set", part, bool(where)))
    assert tree["data"]["objects"] == tree["split"]["clean"]["n"] == tree["split"]["fgsm"]["n_attacked"] == n
    assert tree["data"]["subset"] == {**record(part, where), "limit": None}
    text = (tmp_path / "report.html").read_text()
    assert f"{n} galaxies of set (" in text
    assert ("z_spec &lt; 0.2" in text) == bool(where)
    assert (f"{part} part of a split into 0.1 validation, 0.3 test, seed 4" in text) == (part != "all")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_the_neighbours_are_given_the_same_objects_and_come_from_the_training_part(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder / "set"
    words = ["evaluate", folder / "split", "--data", data, "--knn-train", data, "--attacks", "fgsm"]
    words += ["--eps", 0.1, "--out", tmp_path]
    assert command(*words, "--part", "test", "--where", PREDICATE, "--limit", 21) == 0
    tree = json.loads((tmp_path / "metrics.json").read_text())
    assert tree["knn_colours"]["n"] == tree["split"]["clean"]["n"] == tree["data"]["objects"] == 21
    # --where selects the objects to measure but not the neighbours: the networks trained on all redshifts.
    assert tree["knn_colours"]["n_train"] == len(meant(data, "train", low=False))
    fails(capsys, words, "300 of its objects are in")


def test_the_neighbours_meet_the_predicate_of_the_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = folder / "set", tmp_path / "low"
    train = ["train", "standard", "--data", data, "--out", run, "--where", "z_spec < 0.3", *TINY, *WORDS]
    assert command(*train) == 0
    words = ["--data", data, "--knn-train", data, "--attacks", "fgsm", "--eps", 0.1, "--part", "test"]
    capsys.readouterr()
    assert command("evaluate", run, *words, "--out", tmp_path / "report", "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    content = load(data)
    parts = order.split_part(content.object_id, VALIDATION, TEST, SEED)
    assert tree["knn_colours"]["n_train"] == ((parts == 0) & (content.z_spec < np.float32(0.3))).sum()
    two = ["evaluate", run, folder / "split", *words, "--out", tmp_path / "two"]
    fails(capsys, two, "different data.where")


@pytest.mark.parametrize("name", ["evaluate", "attack", "predict"])
def test_an_empty_selection_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / ("out.hdf5" if name == "predict" else "out")
    words = ["--data", folder / "set", "--out", out]
    fails(
        capsys,
        [name, folder / "split", *words, "--where", "z_spec > 9"],
        "none of its 300 objects is selected (where z_spec > 9): z_spec is 0.0",
    )
    fails(
        capsys,
        [name, folder / "split", *words, "--part", "test", "--where", "z_spec > 9"],
        ": change the part or the condition",
    )
    fails(
        capsys,
        [name, folder / "plain", *words, "--part", "test"],
        "the split of the training has no test part (data.test is 0): choose another part, or a run",
    )
    fails(capsys, [name, folder / "split", *words, "--where", "z_spec < "], "is not a condition")
    assert not out.exists() or (name == "evaluate" and not list(out.iterdir()))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_evaluation_of_training_objects_or_of_another_datasets_test_part_warns(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_dataset(tmp_path / "other", n=60, shard_rows=60)
    words = ["evaluate", folder / "split", "--attacks", "fgsm", "--eps", 0.1, "--out", tmp_path / "report"]

    def warnings(*more: object) -> list[str]:
        capsys.readouterr()
        assert command(*words, *more) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "warning" in line]

    (line,) = warnings("--data", folder / "set")
    assert line.startswith("hpcphotoz: warning: run 'split' was trained on ") and "--part test" in line
    (line,) = warnings("--data", other, "--part", "test")
    assert "'split' was trained on another dataset: --part takes" in line
    assert warnings("--data", folder / "set", "--part", "test") == warnings("--data", other) == []


def test_a_part_includes_the_predicate_of_the_run(folder: Path, tmp_path: Path) -> None:
    data, run = folder / "set", tmp_path / "run"
    assert (
        command("train", "standard", "--data", data, "--out", run, *TINY, *WORDS, "--where", PREDICATE) == 0
    )
    for where, limit in (("", 0.2), ("z_spec < 0.1", 0.1)):
        out = tmp_path / f"{limit}.hdf5"
        words = ["predict", run, "--data", data, "--out", out, "--part", "test", *chosen(where)]
        assert command(*words) == 0
        with h5py.File(out) as file:
            ids = file["ancil/object_id"][...]
        z = dict(zip(load(data).object_id.tolist(), load(data).z_spec.tolist(), strict=True))
        assert ids.tolist() == [i for i in meant(data, "test", True).tolist() if z[i] < limit]


def test_files_that_are_no_result_are_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = folder / "set", folder / "split"
    before = {path: path.read_bytes() for path in (*data.iterdir(), run / "config.toml")}
    for path in before:
        fails(capsys, ["predict", run, "--data", data, "--out", path], "exists and holds no PDFs")
    assert {path: path.read_bytes() for path in before} == before
    fails(capsys, ["evaluate", run, "--data", data, "--out", data], "is a dataset")
    fails(capsys, ["evaluate", run, "--data", data, "--out", run], "is a run")
    out = tmp_path / "pz.hdf5"
    for _ in range(2):
        assert command("predict", run, "--data", data, "--out", out, "--where", "z_spec < 0.1") == 0


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_unknown_redshifts_are_counted_among_the_selected_objects(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = make_stamps(40, seed=3)
    stamps.z_spec[:7] = np.nan
    write_stamps(tmp_path / "data", stamps, shard_rows=10)
    words = ["evaluate", folder / "plain", "--data", tmp_path / "data", "--attacks", "fgsm", "--eps", 0.1]
    capsys.readouterr()
    for where, says in (("isfinite(z_spec)", ""), ("not z_spec < 0.2", "of {n} selected objects have no z")):
        assert command(*words, "--out", tmp_path / "out", "--where", where) == 0
        n = 7 + int((stamps.z_spec >= 0.2).sum())
        told = capsys.readouterr().err
        assert (f": 7 {says.format(n=n)}" in told) if says else "no z_spec" not in told


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_the_part_to_measure_is_one_that_the_run_has(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", folder / "set", "--out", tmp_path, "--attacks", "fgsm", "--eps", 0.1]
    capsys.readouterr()
    assert command("evaluate", folder / "split", *words) == 0
    assert "seen in training; use --part test\n" in capsys.readouterr().err
    assert command("evaluate", folder / "plain", *words) == 0
    assert "use --part validation, or train with --data.test to hold" in capsys.readouterr().err
    assert command("evaluate", folder / "plain", *words, "--part", "validation") == 0
