"""Datasets on the command line: damage is reported in one clear line and leaves no finished output."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.stamps import COLUMNS
from tests.helpers.commands import TINY, copy, fails
from tests.helpers.datasets import make_stamps


def test_missing_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["train", "standard", "--data", tmp_path, "--out", tmp_path / "run"], "no manifest.json")
    fails(capsys, ["inspect", tmp_path / "nowhere"], "no such folder: give that of a dataset or of a run")
    fails(capsys, ["inspect", tmp_path], "holds neither a dataset (manifest.json) nor a run (config.toml)")
    fails(capsys, ["index", tmp_path / "nowhere"], "nowhere: no such folder")
    (tmp_path / "shard-00000.hdf5").write_bytes(b"")
    for words in (
        ["inspect", tmp_path],
        ["train", "standard", "--data", tmp_path, "--out", tmp_path / "run"],
    ):
        fails(capsys, words, "or make one with `hpcphotoz index` if another program wrote the shards")
    assert not (tmp_path / "run" / "checkpoints" / "LATEST").exists()


def test_truncated_shard(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(dataset, tmp_path / "d")
    with (folder / "shard-00001.hdf5").open("r+b") as file:
        file.truncate(20_000)
    fails(
        capsys,
        ["train", "standard", "--data", folder, "--out", tmp_path / "run"],
        "shard-00001.hdf5: 20000 bytes",
    )


def test_nan_image(run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00002.hdf5", "r+") as file:
        file["images"][3, 0, 0, 0] = np.nan
    words = ["--data", folder, "--out"]
    fails(
        capsys,
        [
            "train",
            "standard",
            *words,
            tmp_path / "run",
            *TINY[:4],
            "--run.global_batch",
            16,
            "--run.max_steps",
            9,
        ],
        "row 3: pixels differ",
    )
    fails(capsys, ["attack", run, *words, tmp_path / "adv"], "shard-00002.hdf5: row 3: pixels differ")
    assert not (tmp_path / "adv" / "manifest.json").exists()
    fails(capsys, ["predict", run, *words, tmp_path / "pz.hdf5"], "shard-00002.hdf5: row 3: pixels differ")
    assert not (tmp_path / "pz.hdf5").exists()
    fails(capsys, ["inspect", folder, "--verify"], "shard-00002.hdf5")


def test_a_refused_index_leaves_nothing_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value, says in (
        ("object_id", np.zeros(6, np.int64), "object_id 0 is there twice"),
        ("images", np.ones((6, 5, 16, 16)), "'images' of type float64: want float32"),
        ("ebv", np.full(6, np.nan, np.float32), "has an E(B-V) that is not finite (6 such of 6)"),
        ("sky_sigma", np.zeros((6, 5), np.float32), "has a sky sigma that is not finite and positive (6"),
    ):
        for shard, changed in enumerate([{}, {name: value}] if name != "images" else [{name: value}]):
            with h5py.File(tmp_path / f"shard-{shard:05d}.hdf5", "w") as file:
                file.attrs.update(bands=list("ugriz"), pixel_scale=0.396)
                stamps = make_stamps(6)
                for column in COLUMNS:
                    file[column] = changed.get(column, getattr(stamps, column))
        before = sorted(tmp_path.iterdir())
        fails(capsys, ["index", tmp_path], says)
        assert sorted(tmp_path.iterdir()) == before


def test_z_outside_the_bins(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "standard", "--data", dataset, "--out", tmp_path / "run", "--model.z_max", "0.2"]
    fails(capsys, words, "leaves the bins [0.0, 0.2)")


def test_unreadable_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for band in "ugriz":
        (frames / f"fpC-004192-{band}4-0300.fit.gz").write_bytes(b"not a FITS file")
    (tmp_path / "objects.csv").write_text("object_id,ra_deg,dec_deg\n1,351.6,0.1\n")
    words = [
        "ingest",
        "sdss-frames",
        tmp_path / "d",
        "--frames",
        frames,
        "--objects",
        tmp_path / "objects.csv",
    ]
    fails(capsys, words, ".fit.gz")
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_inspect_describes_the_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(dataset), "--verify", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["shards"], facts["bands"], facts["verified"]) == (75, 3, list("ugriz"), True)
    assert main(["inspect", str(dataset)]) == 0
    assert "ugriz" not in (out := capsys.readouterr().out) and "u, g, r, i, z" in out
