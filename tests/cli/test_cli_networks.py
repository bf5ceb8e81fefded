"""The commands attack, evaluate and predict: what they refuse, write and record."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.evaluation.attack_grid import METHODS
from tests.helpers.commands import fails
from tests.helpers.datasets import load, make_dataset, make_stamps, noise_stamps, write_stamps


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("command", ["evaluate", "predict", "attack"])
def test_a_gpu_that_was_asked_for_is_not_replaced_by_the_cpu(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    words = [command, run, "--data", dataset, "--out", tmp_path / "out"]
    fails(capsys, [*words, "--device", "cuda"], "--device cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    fails(capsys, words, "--device cpu")
    assert not (tmp_path / "out" / "manifest.json").exists() and not (tmp_path / "out").is_file()


def test_wrong_band_count(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    four = make_dataset(tmp_path / "four", n=20, shard_rows=20, bands="ugri")
    for command in ("evaluate", "predict", "attack"):
        out = tmp_path / f"{command}.hdf5"
        capsys.readouterr()
        assert main([command, str(run), "--data", str(four), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "holds bands u,g,r,i but run" in said, "nothing is measured before"
        assert "give a dataset of those bands, or train a run on these" in said
        assert not out.exists()


def test_a_folder_in_use_is_refused_before_a_network_is_read(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["attack", tmp_path / "none", "--data", dataset, "--out", dataset]
    fails(capsys, words, "already holds a finished dataset")


def test_a_failed_evaluation_leaves_no_folder(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report"
    words = ["evaluate", run, "--data", dataset, "--out", out, "--knn-train", dataset]
    fails(capsys, words, "of its objects are in")
    assert not list(tmp_path.iterdir())


def test_a_run_is_averaged_once(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "link"
    again.symlink_to(run)
    fails(capsys, ["predict", run, again, "--data", dataset, "--out", tmp_path / "p.hdf5"], "given twice")


def test_a_configuration_is_no_checkpoint(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", run / "config.toml", "--data", dataset, "--out", tmp_path / "p.hdf5"]
    fails(capsys, words, "config.toml: a TOML file, not a checkpoint: give a run folder")


def test_no_run(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(
        capsys,
        ["predict", tmp_path, "--data", dataset, "--out", tmp_path / "p.hdf5"],
        "no checkpoint: give a run folder",
    )


def test_the_folder_of_the_runs_names_one(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[object] = ["predict", run.parent, "--data", dataset, "--out", tmp_path / "p.hdf5"]
    fails(capsys, words, f"has filled, such as {run} in it")


def test_stack_is_said_to_belong_to_calibrate(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[object] = ["predict", run, "--data", dataset, "--out", tmp_path / "p.hdf5", "--stack"]
    fails(capsys, words, "--stack: belongs to calibrate")


def test_a_checkpoint_with_code_in_it_is_not_run(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = tmp_path / "run" / "checkpoints" / "step-00000009.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Evil()))
    fails(
        capsys,
        ["predict", path, "--data", dataset, "--out", tmp_path / "p.hdf5"],
        "step-00000009.pt: not a readable checkpoint, but damaged or cut off: name an earlier one",
    )
    assert not (tmp_path / "pwned").exists()


def test_attack_keeps_labels_and_the_ball(run: Path, dataset: Path, tmp_path: Path) -> None:

    out = tmp_path / "adv"
    assert (
        main(["attack", str(run), "--data", str(dataset), "--out", str(out), "--eps", "0.5", "--steps", "3"])
        == 0
    )
    pairs = [load(dataset), load(out)]
    np.testing.assert_array_equal(pairs[0].object_id, pairs[1].object_id)
    np.testing.assert_array_equal(pairs[0].z_spec, pairs[1].z_spec)
    change = np.abs(pairs[1].images - pairs[0].images).max(axis=(2, 3)) / pairs[0].sky_sigma
    assert change.max() <= 0.5 * (1 + 1e-5) and change.max() > 0.45
    assert read_manifest(out).provenance


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("attack", ["--target-redshift", "0.4"], "target redshift 0.4: outside the bins [0, 0.4)"),
        ("attack", ["--stop", "0.05", "--precision", "bf16"], "--stop 0.05 with --precision bf16"),
        ("attack", ["--target-redshift", "nan"], "--target-redshift: nan: must be a finite number"),
        ("attack", ["--target-shift", "0.5"], "target shift 0.5: carries every galaxy out"),
        (
            "attack",
            ["--target-shift", "0.1", "--target-redshift", "0.1"],
            "not allowed with argument --target-shift",
        ),
        ("attack", ["--restarts", "3", "--no-random-start"], "restarts 3 without random_start are one"),
        ("attack", ["--restarts", "0"], "--restarts: 0: must be at least 1"),
        ("attack", ["--method", "fgsm", "--restarts", "3"], "restarts 3: fgsm has no random start"),
        ("attack", ["--method", "fgsm", "--stop", "0.05"], "stop 0.05: fgsm is one step"),
        ("attack", ["--method", "apgd", "--step-size", "0.1"], "step_size 0.1: apgd has its own"),
        ("attack", ["--stop", "-1"], "--stop: -1: must be at least 0"),
        ("attack", ["--eps", "inf"], "--eps: inf: must be a finite number"),
        ("attack", ["--eps", "1e39"], "must be at most 1000000"),
        ("attack", ["--step-size", "1e42"], "must be at most 1000000"),
        ("attack", ["--eps", "-1e-3"], "--eps: -1e-3: must be at least 0"),
        ("attack", ["--target-shift", "-5e-1"], "target shift -0.5: carries every galaxy out"),
        (
            "attack",
            ["--seed", "2147483648"],
            "--seed: 2147483648: must be a whole number, at least 0 and less than 2^31",
        ),
        ("attack", ["--seed", "-1"], "--seed: -1: must be a whole number"),
        ("attack", ["--restart", "3"], "--restart: unknown option (did you mean --restarts?)"),
        ("attack", ["--ball", "l1"], "invalid choice: 'l1'"),
        ("attack", ["--loss", "mse"], "invalid choice: 'mse'"),
        ("attack", ["--precision", "fp16"], "invalid choice: 'fp16'"),
        ("evaluate", ["--attacks", "fgsm", "--restarts", "2"], "2 restarts of fgsm alone: add"),
        ("evaluate", ["--attacks", "cw"], "invalid choice: 'cw'"),
        ("evaluate", ["--minimal-eps", "0"], "--minimal-eps: 0: must be above 0 sky sigmas"),
        ("evaluate", ["--headline-eps", "0"], "--headline-eps: 0: must be above 0 sky sigmas"),
        ("evaluate", ["--eps", "0.1", "-0.1"], "--eps: -0.1: must be at least 0"),
        ("evaluate", ["--steps", "0"], "--steps: 0: must be at least 1"),
        ("evaluate", ["--conformal"], "are measured too: name other ones, such as --conformal"),
        ("evaluate", ["--samples", "10"], "--samples is for --certify SIGMA: give that too"),
        ("evaluate", ["--certify", "1", "--samples", "5"], "samples 5: must be at least 10"),
        ("evaluate", ["--certify", "1", "--confidence", "2"], "confidence 2: must be at least 0.5"),
        ("evaluate", ["--limit", "0"], "--limit: 0: must be a whole number, at least 1"),
        ("evaluate", ["--limit", "many"], "--limit: many: must be a whole number, at least 1"),
        ("evaluate", ["--minimal-eps", "much"], "--minimal-eps: much: must be a number"),
        ("evaluate", ["--restarts", "0"], "--restarts: 0: must be at least 1"),
        ("evaluate", ["--by", "ebv:0.2,0.1"], "bins 'ebv:0.2,0.1': want COLUMN, or COLUMN:EDGE,EDGE,..."),
        (
            "evaluate",
            ["--by", "seeing"],
            "has no column 'seeing' of numbers to bin by: want one of aperture_",
        ),
    ],
)
def test_impossible_options_are_refused(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: list[str],
    says: str,
) -> None:
    fails(capsys, [command, run, "--data", dataset, "--out", tmp_path / "out", *words], says)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
@pytest.mark.parametrize("command", ["attack", "evaluate"])
def test_the_substitute_for_an_unknown_redshift_is_reported_once(
    command: str, run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = make_stamps(20, seed=3)
    stamps.z_spec[:7] = np.nan
    write_stamps(tmp_path / "data", stamps, shard_rows=10)
    steps = ["--steps", "1", *(["--eps", "0.1", "--attacks", "pgd"] if command == "evaluate" else [])]
    words = [command, run, "--data", tmp_path / "data", "--out", tmp_path / "out", *steps]
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().err.count("7 of 20 objects have no z_spec: the most probable redshift") == 1


def test_a_run_named_like_a_key_of_the_summary_is_refused_before_any_attack(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(run, tmp_path / "transfer")
    monkeypatch.setattr("hpcphotoz.evaluation.robustness.evaluate", lambda *_, **__: pytest.fail("attacked"))
    words = ["evaluate", tmp_path / "transfer", "--data", dataset, "--out", tmp_path / "out"]
    fails(capsys, words, "run 'transfer': its name is a key of the summary")


def test_an_attack_is_recorded_whole(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hpcphotoz.config import Attack

    out = tmp_path / "adv"
    words = ["--method", "apgd", "--ball", "flux", "--eps", "0.2", "--steps", "2", "--restarts", "2"]
    words += ["--loss", "crps", "--target-shift", "-0.05", "--stop", "0.01"]
    assert main(["attack", str(run), "--data", str(dataset), "--out", str(out), *words]) == 0
    assert "75 attacked stamps, apgd in the flux ball, eps 0.2 sky sigma" in capsys.readouterr().out
    provenance = read_manifest(out).provenance
    assert provenance["attack"] == {
        **Attack().model_dump(),
        **{"method": "apgd", "ball": "flux", "eps": 0.2, "steps": 2, "restarts": 2, "loss": "crps"},
        **{"target": "shift", "target_value": -0.05, "stop": 0.01},
    }
    assert provenance["gradient_precision"] == "fp32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--conformal", "BANDS"], "holds bands g,r,i but run 'standard' takes"),
        (["--check-masking", "1"], "masking checks compare means, and need more"),
        (["--check-masking", "--limit", "1"], "masking checks compare means, and need more"),
    ],
)
def test_objects_that_a_measurement_cannot_use_are_refused_before_the_attacks(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    def evaluate(*_: object, **__: object) -> None:
        raise AssertionError("hours of attacks")

    monkeypatch.setattr("hpcphotoz.evaluation.robustness.evaluate", evaluate)
    bands = str(write_stamps(tmp_path / "bands", noise_stamps()))
    words = [bands if word == "BANDS" else word for word in words]
    fails(capsys, ["evaluate", run, "--data", dataset, "--out", tmp_path / "out", *words], message)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_evaluate_measures_every_attack_and_the_least_epsilon(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--limit", "20", "--eps", "0.2", "--steps", "2", "--restarts", "2", "--minimal-eps", "0.5"]
    words += ["--attacks", "square", "fgsm", "pgd", "apgd", "flux", "l2", "--json"]
    words += ["--queries", "5", "--loss", "probability_margin", "--perturbation"]
    words += ["--certify", "0.5", "--samples", "20", "--confidence", "0.9"]
    words += ["--conformal", str(write_stamps(tmp_path / "calibration", make_stamps(30, seed=5)))]
    assert main(["evaluate", str(run), "--data", str(dataset), "--out", str(tmp_path), *words]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert set(tree["standard"]) == {"clean", *METHODS, "step", "calibration", "minimal_eps"}
    assert tree["standard"]["minimal_eps"]["max_sky_sigma"] == 0.5
    methods = tree["attack"]["by_method"]
    assert methods["l2"]["restarts"] == 2 and tree["attack"]["loss"] == "probability_margin"
    assert methods["square"] == {"method": "square", "ball": "linf", "steps": 5, "restarts": 1}
    assert json.loads((tmp_path / "metrics.json").read_text()) == tree
    assert tree["conformal"]["networks"]["standard"]["n_calibration"] == 30
    assert tree["perturbation"]["attack"] == "apgd" and "standard" in tree["certificate"]["networks"]
    assert len((tmp_path / "certified_radii.csv").read_text().splitlines()) == 21


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_by_default_an_evaluation_costs_no_more_than_fgsm_and_pgd(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--limit", "5", "--eps", "0.1", "--steps", "2", "--json", "--by", "ebv:0,1", "sky_sigma_r"]
    assert main(["evaluate", str(run), "--data", str(dataset), "--out", str(tmp_path), *words]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert set(tree["standard"]) == {"clean", "fgsm", "pgd", "step", "calibration"}
    assert tree["attack"]["by_method"]["pgd"]["restarts"] == 1
    assert set(tree["bins"]) == {"z_spec", "aperture_mag", "ebv", "aperture_snr", "sky_sigma_r"}
    (one,) = tree["bins"]["ebv"]["runs"]["standard"]["clean"]
    assert one["n"] == 5 and one["sigma_mad"] == tree["standard"]["clean"]["sigma_mad"]
