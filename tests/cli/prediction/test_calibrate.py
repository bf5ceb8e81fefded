"""The command `calibrate`, and predictions that use what it has kept."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.result import EvaluationResult
from tests.helpers.commands import TINY, fails
from tests.helpers.datasets import load, make_dataset, make_stamps, write_stamps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "many", n=200, shard_rows=64)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found = []
    for seed in ("0", "1"):
        out = tmp_path_factory.mktemp("runs") / f"run-{seed}"
        options = [*TINY, "--data.validation", "0.4", "--run.seed", seed]
        assert main(["train", "standard", "--data", str(data), "--out", str(out), *options]) == 0
        found.append(out)
    return found


@pytest.fixture
def runs(trained: list[Path], tmp_path: Path) -> list[str]:
    """Copies, which a test may calibrate."""
    return [str(shutil.copytree(run, tmp_path / run.name)) for run in trained]


def densities(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file["data/pdfs"][:])


def test_a_run_is_calibrated_on_its_validation_part_and_predicts_so(
    runs: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", runs[0], "--data", str(data), "--device", "cpu", "--out"]
    assert main([*words, str(tmp_path / "before.hdf5")]) == 0
    capsys.readouterr()
    assert main(["calibrate", runs[0], "--device", "cpu", "--method", "temperature"]) == 0
    assert "calibration.json: temperature " in capsys.readouterr().out
    (one,) = json.loads((Path(runs[0]) / "calibration.json").read_text())["calibrations"]
    assert one["fitted"]["subset"]["part"] == "validation" and 50 <= one["fitted"]["objects"] < 120
    assert one["fitted"]["dataset"] == str(data.resolve())
    assert main([*words, str(tmp_path / "after.hdf5")]) == 0
    assert "calibrated as" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "without.hdf5"), "--no-calibration"]) == 0
    before, after = densities(tmp_path / "before.hdf5"), densities(tmp_path / "after.hdf5")
    np.testing.assert_array_equal(densities(tmp_path / "without.hdf5"), before)
    power = before.astype(np.float64) ** (1 / one["temperature"])
    width = 0.4 / 20
    np.testing.assert_allclose(after, power / power.sum(axis=1, keepdims=True) / width, rtol=1e-5)
    assert main([*words, str(tmp_path / "tta.hdf5"), "--tta"]) == 0
    said = capsys.readouterr().err
    assert "has no calibration for this run alone with --tta: PDFs are not calibrated" in said
    assert main([*words, str(tmp_path / "refused.hdf5"), "--where", "no_column > 1"]) == 2
    assert "calibrated" not in capsys.readouterr().err


def test_evaluate_scores_the_pdfs_that_predict_writes(
    runs: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found: list[EvaluationResult] = []

    def write(result: EvaluationResult, *_: object) -> dict[str, object]:
        found.append(result)
        return {}

    monkeypatch.setattr("hpcphotoz.evaluation.report.write.write_report", write)
    assert main(["calibrate", runs[0], "--device", "cpu", "--method", "temperature"]) == 0
    words = ["evaluate", runs[0], "--data", str(data), "--device", "cpu", "--precision", "fp32", "--out"]
    words += [str(tmp_path / "report"), "--attacks", "fgsm", "--eps", "0.1", "--json"]
    capsys.readouterr()
    assert main(words) == 0
    assert "run-0/calibration.json says: temperature" in capsys.readouterr().err
    assert main([*words, "--no-calibration"]) == 0
    assert "calibration.json" not in capsys.readouterr().err
    assert main([*words, "--part", "validation"]) == 0
    assert "calibrations were fitted to these objects" in capsys.readouterr().err
    calibrated, own, _ = found
    assert list(calibrated.calibrations) == ["run-0"] and own.calibrations == {}
    out, edges, z_spec = tmp_path / "pz.hdf5", np.linspace(0, 0.4, 21), load(data).z_spec
    for result, more in ((calibrated, []), (own, ["--no-calibration"])):
        predicted = ["predict", runs[0], "--data", str(data), "--device", "cpu", "--out", str(out), *more]
        assert main(predicted) == 0
        pdf = densities(out).astype(np.float64) * (0.4 / 20)
        scores = metrics.pdf_scores(pdf, edges, z_spec)
        expected = metrics.summary(pdf @ (edges[1:] + edges[:-1]) / 2, z_spec, **scores)
        assert result.networks[0].clean.metrics == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert calibrated.networks[0].clean.metrics["crps"] != own.networks[0].clean.metrics["crps"]


def test_a_calibration_of_another_checkpoint_is_refused(
    runs: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", runs[0], "--device", "cpu"]) == 0
    options = [*TINY, "--data.validation", "0.4", "--run.max_steps", "4"]
    options = [word for k, word in enumerate(options) if options[k - 1 : k + 1] != ["--run.max_steps", "2"]]
    options.remove("--run.max_steps")
    assert main(["train", "standard", "--data", str(data), "--out", runs[0], *options]) == 0
    words: list[object] = ["predict", runs[0], "--data", data, "--out", tmp_path / "pz.hdf5"]
    fails(capsys, words, "belongs to step 2 of run 'run-0', whose newest checkpoint is step 4")
    assert main([*map(str, words), "--no-calibration"]) == 0
    report: list[object] = ["evaluate", runs[0], "--data", data, "--out", tmp_path / "report"]
    fails(capsys, report, "belongs to step 2 of run 'run-0', whose newest checkpoint is step 4")


def test_a_dataset_of_other_bands_is_one_line_for_a_calibrated_run_too(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", runs[0], "--device", "cpu"]) == 0
    other = write_stamps(tmp_path / "gri", make_stamps(8, bands=3))
    for command, out in (("predict", "pz.hdf5"), ("evaluate", "report")):
        capsys.readouterr()
        assert main([command, runs[0], "--data", str(other), "--out", str(tmp_path / out)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "gri: holds bands g,r,i but run 'run-0' takes u,g,r,i,z" in said
    fails(
        capsys, ["calibrate", runs[0], "--where", "z_spec < 0.2"], "--where: calibrate takes all objects of"
    )


def test_an_ensemble_is_stacked_and_found_in_any_order(
    runs: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", *runs, "--device", "cpu", "--stack", "--data", str(data)]) == 0
    out = tmp_path / "pz.hdf5"
    words = ["--data", str(data), "--device", "cpu", "--out", str(out)]
    assert main(["predict", *reversed(runs), *words]) == 0
    (one,) = json.loads((Path(runs[0]) / "calibration.json").read_text())["calibrations"]
    with h5py.File(out) as file:
        recorded = json.loads(file.attrs["prediction"])
    assert recorded["weights"] == one["weights"][::-1] and sum(one["weights"]) == pytest.approx(1)
    capsys.readouterr()
    fails(capsys, ["calibrate", runs[0], "--data", data, "--stack"], "--stack: weighs several runs")
    namesake = str(shutil.copytree(runs[1], tmp_path / "other" / Path(runs[0]).name))
    fails(capsys, ["calibrate", runs[0], namesake, "--data", data], "two runs are called 'run-0': rename")


def test_what_cannot_be_calibrated_is_one_line(
    runs: list[str], data: Path, run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(
        capsys,
        ["calibrate", run, "--data", dataset],
        "4 objects of known redshift in the validation part: a calibration needs 50",
    )
    checkpoint = next((Path(runs[0]) / "checkpoints").iterdir())
    fails(capsys, ["calibrate", checkpoint, "--data", data], "a calibration is kept in a run folder")
    (Path(runs[0]) / "calibration.json").write_text('{"format": 1}')
    for words in (["calibrate", runs[0]], ["predict", runs[0], "--data", data, "--out", "pz.hdf5"]):
        fails(capsys, [*words], "calibration.json: is no calibration: remove it")


def test_a_run_without_a_validation_part_is_told_what_helps(
    runs: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(out: Path, validation: str) -> Path:
        words = ["train", "standard", "--data", str(data), "--out", str(out), *TINY]
        assert main([*words, "--data.validation", validation]) == 0
        return out

    none = train(tmp_path / "none", "0")
    says = "run 'none': its split has no validation part (data.validation is 0), to which a calibration"
    fails(
        capsys, ["calibrate", none], f"{says} is fitted: train a new run with --data.validation 0.1, or more"
    )
    fails(capsys, ["calibrate", none, "--data", data], says)
    assert main(["calibrate", str(train(tmp_path / "new", "0.3")), "--device", "cpu"]) == 0
    differing = ["calibrate", runs[0], tmp_path / "new", "--data", data]
    fails(capsys, differing, "the validation part: the runs have different splits: give one run at a time")
