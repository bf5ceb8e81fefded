"""A survey's own cut on catalogue columns selects the objects of every command, from ingest to predict."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz import api
from hpcphotoz.__main__ import main
from hpcphotoz.config import Data
from hpcphotoz.data import order
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.select.subset import Subset
from tests.helpers.commands import TINY, fails
from tests.helpers.datasets import load
from tests.helpers.sources.sdss_files import DEC, RA, SCALE, write_set

CUT = "dered_petro_r <= 17.8 and primtarget >= 64"
N = 60
SPLIT = ["--data.validation", 0.1, "--data.test", 0.4]


def command(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    """A table in the order of its ids; some magnitudes are unknown or the cut's own 17.8."""
    rng = np.random.default_rng(8)
    at = rng.uniform(-60, 60, (N, 2)) * SCALE
    petro = [f"{value:.3f}" for value in rng.uniform(16.5, 19, N)]
    petro[3], petro[7] = "", "17.8"
    target = rng.choice([0, 32, 64, 96, 2**40], N)
    target[[3, 7]] = 64
    return [
        {
            "object_id": k,
            "ra": RA + at[k, 0],
            "dec": DEC + at[k, 1],
            "z": rng.uniform(0.01, 0.3),
            "dered_petro_r": petro[k],
            "primtarget": target[k],
        }
        for k in range(N)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> Path:
    """A folder of frames, the table, the dataset cut from them, and a run trained with the cut."""
    base = tmp_path_factory.mktemp("cut")
    write_set(base / "frames", [(RA, DEC)])
    with open(base / "objects.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ingest = ["ingest", "sdss-frames", base / "set", "--frames", base / "frames"]
    ingest += ["--objects", base / "objects.csv", "--keep", "dered_petro_r", "primtarget"]
    assert command(*ingest, "--stamp", 16, "--shard-rows", 25, "--processes", 1) == 0
    train = ["train", "standard", "--data", base / "set", "--out", base / "run", "--data.where", CUT]
    assert command(*train, *TINY[:6], *SPLIT, "--run.global_batch", 8) == 0
    return base


def chosen(rows: list[dict[str, object]], part: str = "all") -> npt.NDArray[np.int64]:
    """Ids that the cut selects from a part of the split, by the table alone."""
    ids = [
        k
        for k, row in enumerate(rows)
        if row["dered_petro_r"]
        and float(str(row["dered_petro_r"])) <= 17.8
        and int(str(row["primtarget"])) >= 64
    ]
    found = np.array(ids, np.int64)
    if part == "all":
        return found
    number = ("train", "validation", "test").index(part)
    return np.array(found[order.split_part(found, 0.1, 0.4, 0) == number])


def test_the_table_has_objects_on_both_sides_of_the_cut(rows: list[dict[str, object]], folder: Path) -> None:
    assert 7 in chosen(rows) and 3 not in chosen(rows)
    assert 5 < len(chosen(rows)) < N / 2 and len(chosen(rows, "test")) > 1
    assert sorted(load(folder / "set").object_id.tolist()) == list(range(N))


def test_inspect_lists_the_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", folder / "set", "--json") == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["extra"]}
    assert listed["dered_petro_r"]["dtype"] == "float64" and listed["dered_petro_r"]["unknown"] == 1
    assert listed["primtarget"]["dtype"] == "int64" and listed["primtarget"]["max"] == 2**40


@pytest.mark.parametrize("part", ["all", "test"])
def test_predict(folder: Path, tmp_path: Path, rows: list[dict[str, object]], part: str) -> None:
    out = tmp_path / "pz.hdf5"
    words = ["predict", folder / "run", "--data", folder / "set", "--out", out, "--part", part]
    assert command(*words, *([] if part == "test" else ["--where", CUT])) == 0  # a part has the run's cut
    with h5py.File(out) as file:
        assert sorted(file["ancil/object_id"][:].tolist()) == chosen(rows, part).tolist()


def test_attack_keeps_the_columns_of_the_objects_selected(
    folder: Path, tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    out = tmp_path / "adv"
    words = ["attack", folder / "run", "--data", folder / "set", "--out", out, "--method", "fgsm"]
    assert command(*words, "--where", CUT) == 0
    found = load(out)
    at = np.argsort(found.object_id)
    assert found.object_id[at].tolist() == chosen(rows).tolist()
    for name in ("dered_petro_r", "primtarget"):
        expected = [float(str(rows[k][name])) for k in chosen(rows)]
        assert found.extra[name][at].tolist() == expected


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_evaluate(
    folder: Path, tmp_path: Path, rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", folder / "run", "--data", folder / "set", "--attacks", "fgsm", "--eps", 0.1]
    for n, more in ((len(chosen(rows)), ["--where", CUT]), (len(chosen(rows, "test")), ["--part", "test"])):
        capsys.readouterr()
        assert command(*words, *more, "--out", tmp_path / str(n), "--json") == 0
        assert json.loads(capsys.readouterr().out)["data"]["objects"] == n


def test_the_python_interface_reads_the_same_objects(folder: Path, rows: list[dict[str, object]]) -> None:
    header = read_manifest(folder / "set").header
    subset = Subset.from_options(Data(where=CUT), "all", header.bands, header.extra)
    dataset = api.open(folder / "set", subset=subset, device="cpu")
    ids = np.concatenate([batch.object_id.numpy() for batch in dataset])
    assert sorted(ids.tolist()) == chosen(rows).tolist()


def test_a_column_that_was_not_kept_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", folder / "run", "--data", folder / "set", "--out", tmp_path / "pz.hdf5"]
    fails(capsys, [*words, "--where", "zwarning == 0"], "knows no 'zwarning', at character 1; names: z_spec")
