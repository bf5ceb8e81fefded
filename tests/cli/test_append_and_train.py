"""A dataset that grows after a training: every object keeps its part, and the run is not continued on it."""

import json
from pathlib import Path

import numpy as np
import pytest

import hpcphotoz
from hpcphotoz.__main__ import main
from hpcphotoz.data.select.subset import SPLIT_PARTS
from tests.helpers.commands import TINY, fails
from tests.helpers.sources.array_files import hayat

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
OLD, NEW = 60, 40


def command(*words: object) -> int:
    return main([str(word) for word in words])


def ingest(data: Path, *words: object) -> None:
    """Makes the dataset of the first file, or with --append of both."""
    files = [hayat(data.parent / f"{k}.h5", n, 16, **columns(k, n)) for k, n in ((0, OLD), (1, NEW))]
    chosen = files if "--append" in words else files[:1]
    options = "--format", "hayat", "--shard-rows", 16, "--keep", "specObjID", "--processes", 1
    assert command("ingest", "table", data, *chosen, *options, *words) == 0


def columns(k: int, n: int) -> dict[str, object]:
    return {"ObjID": np.arange(n) + 1000 * k, "specObjID": np.arange(n) % 30}


@pytest.mark.parametrize("split_by", ["", "healpix:8", "specObjID"])
def test_every_object_keeps_its_part_and_the_run_its_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split_by: str
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    ingest(data)
    train = ["train", "standard", "--data", data, *TINY, "--data.validation", 0.2, "--data.test", 0.3]
    train += ["--data.split_by", split_by] if split_by else []
    assert command(*train, "--out", run) == 0
    network = hpcphotoz.load(run, device="cpu")

    def parts() -> dict[str, set[int]]:
        opened = {part: hpcphotoz.open(data, part=part, network=network) for part in SPLIT_PARTS}
        return {part: set(of[:].object_id.tolist()) for part, of in opened.items()}

    before = parts()
    ingest(data, "--append")
    after = parts()
    assert len(before["all"]) == OLD and len(after["all"]) == OLD + NEW
    for part in SPLIT_PARTS:
        assert after[part] & before["all"] == before[part] and after[part] > before[part]
    assert sum(len(after[part]) for part in SPLIT_PARTS if part != "all") == OLD + NEW

    # Of a run's files, a start that is refused changes its heartbeat alone.
    kept = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "heartbeat.json"}
    says = (
        f"{run}: was trained on {data} before objects were appended to it: choose a new --out, with the same"
    )
    fails(capsys, [*train, "--out", run], says)
    assert {path: path.read_bytes() for path in kept} == kept
    assert command(*train, "--out", tmp_path / "new") == 0

    words = ["evaluate", run, "--data", data, "--out", tmp_path / "report", "--attacks", "fgsm", "--eps", 0.1]
    capsys.readouterr()
    assert command(*words, "--part", "test") == 0
    assert "warning" not in capsys.readouterr().err
    tree = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert tree["run"]["clean"]["n"] == len(after["test"])
    assert command(*words) == 0
    assert "its metrics are of objects seen in training; use --part test" in capsys.readouterr().err
