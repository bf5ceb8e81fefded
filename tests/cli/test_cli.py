"""The command line: any bad input is one clear line, exit status 2, and leaves nothing that looks done."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from tests.helpers.datasets import make_dataset, make_stamps

TINY = [
    "--model.width",
    "8",
    "--model.bins",
    "20",
    "--run.max_steps",
    "2",
    "--run.global_batch",
    "16",
]


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "standard"
    assert main(["train", "standard", "--data", str(dataset), "--out", str(out), *TINY]) == 0
    return out


def copy(dataset: Path, to: Path) -> Path:
    return Path(shutil.copytree(dataset, to))


def fails(capsys: pytest.CaptureFixture[str], words: list[object], says: str) -> None:
    """Exit status 2, and the last line of standard error is the one that says why."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("hpcphotoz: error: ") and says in errors[0], lines
    assert not any("Traceback" in line for line in lines)


def test_missing_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["train", "standard", "--data", tmp_path, "--out", tmp_path / "run"], "no manifest.json")
    fails(capsys, ["inspect", tmp_path / "nowhere"], "not a dataset")
    fails(capsys, ["index", tmp_path / "nowhere"], "nowhere: no such folder")
    (tmp_path / "shard-00000.h5").write_bytes(b"")
    for words in (
        ["inspect", tmp_path],
        ["train", "standard", "--data", tmp_path, "--out", tmp_path / "run"],
    ):
        fails(capsys, words, "or make one with `hpcphotoz index` if another program wrote the shards")
    assert not (tmp_path / "run" / "checkpoints" / "LATEST").exists()


def test_truncated_shard(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(dataset, tmp_path / "d")
    with (folder / "shard-00001.h5").open("r+b") as file:
        file.truncate(20_000)
    fails(
        capsys,
        ["train", "standard", "--data", folder, "--out", tmp_path / "run"],
        "shard-00001.h5: 20000 bytes",
    )


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
        fails(capsys, [command, run, "--data", four, "--out", out], "bands")
        assert not (out / "manifest.json").exists() and not out.is_file()


def test_nan_image(run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00002.h5", "r+") as file:
        file["images"][3, 0, 0, 0] = np.nan
    words = ["--data", folder, "--out"]
    fails(
        capsys,
        ["train", "standard", *words, tmp_path / "run", *TINY, "--run.max_steps", 9],
        "row 3: pixels differ",
    )
    fails(capsys, ["attack", run, *words, tmp_path / "adv"], "shard-00002.h5: row 3: pixels differ")
    assert not (tmp_path / "adv" / "manifest.json").exists()
    fails(capsys, ["predict", run, *words, tmp_path / "pz.hdf5"], "shard-00002.h5: row 3: pixels differ")
    assert not (tmp_path / "pz.hdf5").exists()
    fails(capsys, ["inspect", folder, "--verify"], "shard-00002.h5")


def test_unknown_configuration_key(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "standard", "--data", dataset, "--out", tmp_path / "run"]
    fails(
        capsys,
        [*words, "--attack.epsilon", "0.3"],
        "--attack.epsilon: unknown option (did you mean attack.eps?); valid: attack.method",
    )
    fails(capsys, [*words, "--run.epochs", "many"], "--run.epochs many: Input should be")
    fails(capsys, [*words, "stray"], "stray: not understood")
    fails(capsys, ["train", "nothing", *words[2:]], "not a readable TOML file nor a recipe")
    assert not (tmp_path / "run").exists()


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


def test_unusable_words(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["simulat"], "simulat: unknown command (did you mean simulate?); valid: simulate, ingest")
    fails(capsys, ["ingest", "tabel"], "tabel: unknown command (did you mean table?); valid: sdss-frames")
    fails(capsys, ["simulate", "/tmp/x", "--n", "ten"], "invalid int value: 'ten'")
    fails(capsys, ["inspect", "/tmp/x", "--deep"], "see hpcphotoz inspect --help")
    fails(capsys, ["launch", "slurm", "--nodes", "2"], "give the run after `--`")


def test_without_a_word_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: hpcphotoz" in capsys.readouterr().out


def test_an_unknown_option_is_named_before_what_is_missing(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "standard", "--dta", dataset, "--out", "run"]
    fails(capsys, words, "--dta: unknown option (did you mean --data?)")
    fails(capsys, ["launch", "slurm", "--", *words], "--dta: unknown option (did you mean --data?)")
    fails(
        capsys,
        ["launch", "slurm", "--node", "2", "--", *words],
        "--node: unknown option (did you mean --nodes",
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0.0004", "much", "-1"])
def test_memory_that_cannot_be(value: str, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "slurm", "--dry-run", "--mem-gb", value, "--", "train", "standard"]
    fails(capsys, [*words, "--data", dataset, "--out", "run"], f"argument --mem-gb: {value}: must be ")


def test_a_negative_number_with_an_exponent_is_a_value(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "adversarial", "--data", dataset, "--out", tmp_path / "run", "--attack.target", "shift"]
    fails(capsys, [*words, "--attack.target_value", "-5e-1"], "target shift -0.5: carries every galaxy")


def test_no_run(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(
        capsys,
        ["predict", tmp_path, "--data", dataset, "--out", tmp_path / "p.hdf5"],
        "no checkpoint: give a run folder",
    )


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
        "not a readable checkpoint",
    )
    assert not (tmp_path / "pwned").exists()


def test_inspect_tells_what_is_there(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(dataset), "--verify", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["shards"], facts["bands"], facts["verified"]) == (75, 3, list("ugriz"), True)
    assert main(["inspect", str(dataset)]) == 0
    assert "ugriz" not in (out := capsys.readouterr().out) and "u, g, r, i, z" in out


def test_attack_keeps_labels_and_the_ball(run: Path, dataset: Path, tmp_path: Path) -> None:
    from hpcphotoz.data.format.stamps import Stamps
    from hpcphotoz.data.read import rows

    out = tmp_path / "adv"
    assert (
        main(["attack", str(run), "--data", str(dataset), "--out", str(out), "--eps", "0.5", "--steps", "3"])
        == 0
    )
    pairs = [Stamps.concatenate(list(rows.read_rows(d, read_manifest(d)))) for d in (dataset, out)]
    np.testing.assert_array_equal(pairs[0].object_id, pairs[1].object_id)
    np.testing.assert_array_equal(pairs[0].z_spec, pairs[1].z_spec)
    change = np.abs(pairs[1].images - pairs[0].images).max(axis=(2, 3)) / pairs[0].sky_sigma
    assert change.max() <= 0.5 * (1 + 1e-5) and change.max() > 0.45
    assert read_manifest(out).provenance


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target-redshift", "0.4"], "target redshift 0.4: outside the bins [0, 0.4)"),
        (["--stop", "0.05", "--precision", "bf16"], "--stop 0.05 with --precision bf16"),
        (["--target-redshift", "nan"], "--target-redshift: nan: must be a finite number"),
        (["--target-shift", "0.5"], "target shift 0.5: carries every galaxy out"),
        (["--target-shift", "0.1", "--target-redshift", "0.1"], "not allowed with argument --target-shift"),
        (["--restarts", "3", "--no-random-start"], "restarts 3 without random_start are one"),
        (["--restarts", "0"], "--restarts: 0: Input should be greater"),
        (["--method", "fgsm", "--restarts", "3"], "restarts 3: fgsm has no random start"),
        (["--method", "fgsm", "--stop", "0.05"], "stop 0.05: fgsm is one step"),
        (["--method", "apgd", "--step-size", "0.1"], "step_size 0.1: apgd has its own"),
        (["--stop", "-1"], "--stop: -1: Input should be greater"),
        (["--eps", "inf"], "--eps: inf: Input should be a finite number"),
        (["--eps", "1e39"], "Input should be less than or equal to 1000000"),
        (["--step-size", "1e42"], "Input should be less than or equal to 1000000"),
        (["--eps", "-1e-3"], "--eps: -1e-3: Input should be greater"),
        (["--target-shift", "-5e-1"], "target shift -0.5: carries every galaxy out"),
        (
            ["--seed", "2147483648"],
            "--seed: 2147483648: must be a whole number, at least 0 and less than 2^31",
        ),
        (["--seed", "-1"], "--seed: -1: must be a whole number"),
        (["--restart", "3"], "--restart: unknown option (did you mean --restarts?)"),
        (["--ball", "l1"], "invalid choice: 'l1'"),
        (["--loss", "mse"], "invalid choice: 'mse'"),
        (["--precision", "fp16"], "invalid choice: 'fp16'"),
    ],
)
def test_options_of_an_attack_that_cannot_be(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    fails(capsys, ["attack", run, "--data", dataset, "--out", tmp_path / "out", *words], says)
    assert not (tmp_path / "out").exists()


def test_options_of_the_configuration_are_named_as_they_were_typed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "adversarial", "--data", dataset, "--out", tmp_path / "run"]
    for wrong, says in (
        (["--attack.eps", "nan"], "--attack.eps nan: Input should be a finite number"),
        (["--attack.steps=0"], "--attack.steps 0: Input should be greater"),
        (["--attack.method", "fgsm", "--attack.restarts", "2"], "adversarial with --attack.restarts 2: "),
    ):
        fails(capsys, [*words, *wrong], f"hpcphotoz: error: {says}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "standard", "--data", "DATA", "--out", ""],
        ["train", "standard", "--data", "", "--out", "OUT"],
        ["predict", "", "--data", "DATA", "--out", "OUT"],
        ["attack", "", "--data", "DATA", "--out", "OUT"],
        ["evaluate", "", "--data", "DATA", "--out", "OUT"],
        ["inspect", ""],
        ["index", ""],
        ["simulate", "", "--n", "3"],
        ["launch", "local", "--", "train", "standard", "--data", "DATA", "--out", ""],
    ],
    ids=lambda words: words[0],
)
def test_an_empty_path_is_not_the_working_directory(
    words: list[str],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    put = {"DATA": dataset, "OUT": tmp_path / "out"}
    fails(capsys, [put.get(word, word) for word in words], "an empty path: give the name of a file or folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
@pytest.mark.parametrize("command", ["attack", "evaluate"])
def test_what_stands_in_for_an_unknown_redshift_is_said_once(
    command: str, run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = make_stamps(20, seed=3)
    stamps.z_spec[:7] = np.nan
    header = read_manifest(dataset).header
    with DatasetWriter(tmp_path / "data", header, 10, {}) as writer:
        writer.append(stamps)
    steps = ["--steps", "1", *(["--eps", "0.1", "--attacks", "pgd"] if command == "evaluate" else [])]
    words = [command, run, "--data", tmp_path / "data", "--out", tmp_path / "out", *steps]
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().err.count("7 of 20 objects have no z_spec: the most probable redshift") == 1


def test_a_launch_says_where_it_can_go(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["launch", "--", "train", "standard"], "required: local|slurm")
    fails(capsys, ["launch"], "required: local|slurm")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--attacks", "fgsm", "--restarts", "2"], "2 restarts of FGSM alone"),
        (["--attacks", "cw"], "invalid choice: 'cw'"),
        (["--minimal-eps", "0"], "--minimal-eps: 0: must be above 0 sky sigmas"),
        (["--headline-eps", "0"], "--headline-eps: 0: must be above 0 sky sigmas"),
        (["--eps", "0.1", "-0.1"], "--eps: -0.1: Input should be greater"),
        (["--steps", "0"], "--steps: 0: Input should be greater"),
        (["--limit", "0"], "--limit: 0: must be a whole number, at least 1"),
        (["--limit", "many"], "--limit: many: must be a whole number, at least 1"),
        (["--minimal-eps", "much"], "--minimal-eps: much: Input should be a valid number"),
        (["--restarts", "0"], "--restarts: 0: Input should be greater"),
    ],
)
def test_options_of_an_evaluation_that_cannot_be(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    fails(capsys, ["evaluate", run, "--data", dataset, "--out", tmp_path / "out", *words], says)
    assert not (tmp_path / "out" / "summary.json").exists()


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
        **Attack().model_dump(exclude={"fraction"}),
        **{"method": "apgd", "ball": "flux", "eps": 0.2, "steps": 2, "restarts": 2, "loss": "crps"},
        **{"target": "shift", "target_value": -0.05, "stop": 0.01},
    }
    assert provenance["gradient_precision"] == "fp32"


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_evaluate_measures_every_attack_and_the_least_epsilon(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--limit", "20", "--eps", "0.2", "--steps", "2", "--restarts", "2", "--minimal-eps", "0.5"]
    words += ["--attacks", "fgsm", "pgd", "apgd", "flux", "l2", "--json", "--loss", "margin"]
    assert main(["evaluate", str(run), "--data", str(dataset), "--out", str(tmp_path), *words]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert set(tree["standard"]) == {"clean", "fgsm", "pgd", "apgd", "flux", "l2", "step", "minimal_eps"}
    assert tree["standard"]["minimal_eps"]["max_sky_sigma"] == 0.5
    assert tree["attack"]["by_method"]["l2"]["restarts"] == 2 and tree["attack"]["loss"] == "margin"
    assert json.loads((tmp_path / "summary.json").read_text()) == tree


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_by_default_an_evaluation_costs_no_more_than_fgsm_and_pgd(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--limit", "5", "--eps", "0.1", "--steps", "2", "--json"]
    assert main(["evaluate", str(run), "--data", str(dataset), "--out", str(tmp_path), *words]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert set(tree["standard"]) == {"clean", "fgsm", "pgd", "step"}
    assert tree["attack"]["by_method"]["pgd"]["restarts"] == 1


@pytest.mark.parametrize(
    "command", ["simulate", "ingest", "inspect", "train", "attack", "evaluate", "predict", "launch"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "usage: hpcphotoz" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["attack", "evaluate", "predict", "inspect", "index", "launch"])
def test_a_command_for_one_process_is_refused_on_several_ranks(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    words: dict[str, list[object]] = {
        "inspect": [dataset],
        "index": [tmp_path],
        "launch": ["slurm", "--dry-run", "--", "train", "standard", "--data", dataset, "--out", out],
    }
    chosen = words.get(command, [run, "--data", dataset, "--out", out])
    fails(capsys, [command, *chosen], f"{command} is for one process: start it once")
    assert not out.exists()


def test_dry_run_prints_a_script_and_writes_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    words = ["launch", "slurm", "--nodes", "2", "--gpus-per-node", "4", "--dry-run", "--"]
    words += ["train", "standard", "--data", str(dataset), "--out", str(tmp_path / "run")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert (
        text.startswith("#!/bin/bash")
        and "#SBATCH --nodes=2" in text
        and "#SBATCH --ntasks-per-node=4" in text
    )
    assert not (tmp_path / "run").exists()
