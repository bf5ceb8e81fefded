"""A split by groups goes from `train` to the run folder and to --part of evaluate, attack and predict."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data import order
from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.select.healpix import nested_pixel
from tests.helpers.commands import TINY, fails
from tests.helpers.datasets import HEADER, load, make_dataset, make_stamps

N, SEED = 300, 4
WORDS = ["--data.validation", 0.1, "--data.test", 0.3, "--data.split_seed", SEED]
SPLIT = {"validation": 0.1, "test": 0.3, "seed": SEED}


def command(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a column of 60 tracts, and runs split by tract and by pixel of the sky."""
    base, stamps = tmp_path_factory.mktemp("split"), make_stamps(N)
    header = Header(HEADER.bands, 16, HEADER.pixel_scale, extra=(ExtraColumn("tract", "int32"),))
    with DatasetWriter(base / "set", header, 120, {"made": "for a test"}) as writer:
        writer.append(replace(stamps, extra={"tract": np.arange(N, dtype=np.int32) % 60}))
    train = ["train", "standard", "--data", base / "set", *TINY, *WORDS]
    assert command(*train, "--out", base / "tract", "--split-by", "tract") == 0
    assert command(*train, "--out", base / "sky", "--data.split_by", "healpix:16") == 0
    return base


def test_predict_and_attack_take_the_part_of_the_run(folder: Path, tmp_path: Path) -> None:
    stamps = load(folder / "set")
    groups = {
        "tract": stamps.extra["tract"].astype(np.int64),
        "sky": nested_pixel(stamps.ra, stamps.dec, 16),
    }
    for run, by in (("tract", "tract"), ("sky", "healpix:16")):
        record = {"part": "test", "where": "", "split": {**SPLIT, "by": by}}
        want = stamps.object_id[order.split_part(groups[run], 0.1, 0.3, SEED) == 2]
        out = tmp_path / f"{run}.hdf5"
        words = [folder / run, "--data", folder / "set", "--part", "test"]
        assert command("predict", *words, "--out", out) == 0
        with h5py.File(out) as file:
            assert file["ancil/object_id"][...].tolist() == want.tolist()
            assert json.loads(file.attrs["dataset"])["subset"] == record
        assert command("attack", *words, "--out", tmp_path / run, "--method", "fgsm") == 0
        assert load(tmp_path / run).object_id.tolist() == want.tolist() and 0 < len(want) < N
        made = read_manifest(tmp_path / run).provenance["source_subset"]
        assert made == {**record, "limit": None}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_evaluate_names_the_split_and_refuses_two(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", folder / "set", "--attacks", "fgsm", "--eps", 0.1, "--part", "test"]
    assert command("evaluate", folder / "tract", *words, "--out", tmp_path / "report") == 0
    tree = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert tree["data"]["subset"]["split"] == {**SPLIT, "by": "tract"}
    assert "test part of a split by tract into 0.1" in (tmp_path / "report" / "report.html").read_text()
    two = ["evaluate", folder / "tract", folder / "sky", *words, "--out", tmp_path / "two"]
    fails(capsys, two, "--part test: the runs have different splits")


def test_another_dataset_is_split_by_its_own_column(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_dataset(tmp_path / "other", n=60, shard_rows=60)
    words = ["--data", other, "--part", "test"]
    says = "data.split_by: 'tract' is no column that names groups: possible are healpix:NSIDE, object_id"
    fails(capsys, ["predict", folder / "tract", *words, "--out", tmp_path / "a.hdf5"], says)
    assert command("predict", folder / "tract", "--data", other, "--out", tmp_path / "all.hdf5") == 0
    capsys.readouterr()
    assert command("predict", folder / "sky", *words, "--out", tmp_path / "b.hdf5") == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert line.endswith(
        "those objects of " + str(other) + " whose healpix:16 is in that part of a split by it"
    )


def test_the_run_folder_keeps_the_split_and_another_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "tract"
    assert 'split_by = "tract"' in (run / "config.toml").read_text()
    (start,) = json.loads((run / "provenance.json").read_text())["starts"]
    parts = order.split_part(np.arange(N) % 60, 0.1, 0.3, SEED)
    counts = dict(zip(("training", "validation", "test"), np.bincount(parts).tolist(), strict=True))
    assert start["split"] == {"by": "tract", **counts, "unplaced": 0, "groups": 60}
    train = ["train", "standard", "--data", folder / "set", "--out", run, *TINY, *WORDS]
    says = 'holds a run with another data.split_by ("tract", now "")'
    fails(capsys, train, says)
    fails(capsys, [*train, "--split-by", "healpix:3"], "--data.split_by healpix:3: must be healpix:NSIDE")
    assert command(*train, "--split-by", "tract") == 0


def test_few_groups_are_warned_of_and_an_empty_part_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = make_stamps(N)
    header = Header(HEADER.bands, 16, HEADER.pixel_scale, extra=(ExtraColumn("half", "bool"),))
    with DatasetWriter(tmp_path / "set", header, 120, {"made": "for a test"}) as writer:
        writer.append(replace(stamps, extra={"half": np.arange(N) % 4 == 0}))
    parts = {s: order.split_part(np.arange(2), 0.1, 0.0, s).tolist() for s in range(200)}
    torn, empty = (next(s for s, p in parts.items() if p == want) for want in ([0, 1], [0, 0]))
    train = ["train", "standard", "--data", tmp_path / "set", *TINY, "--split-by", "half"]
    train += ["--data.validation", 0.1, "--data.split_seed"]
    capsys.readouterr()
    assert command(*train, torn, "--out", tmp_path / "run") == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "split_by" in line)
    assert line == (
        "hpcphotoz: warning: data.split_by half: 2 groups: training 225, validation 75, test 0 objects "
        "(validation 25.0% instead of 10.0%): take smaller groups, or another data.split_seed"
    )
    fails(
        capsys,
        [*train, empty, "--out", tmp_path / "none"],
        "no object in its validation part (300 in all; by half, 2 groups: training 300, validation 0, test 0 "
        "objects): add objects or change data.validation, data.test, data.split_by or data.where",
    )
