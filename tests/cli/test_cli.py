"""The command line: any bad input gives one clear line and exit status 2, and leaves no finished output."""

from pathlib import Path

import pytest
import torch

from hpcphotoz import cli
from hpcphotoz.__main__ import main
from hpcphotoz.errors import BadInput
from tests.helpers.commands import fails


def test_unknown_configuration_key(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "standard", "--data", dataset, "--out", tmp_path / "run"]
    fails(
        capsys,
        [*words, "--attack.epsilon", "0.3"],
        "--attack.epsilon: unknown option (did you mean attack.eps?); valid: attack.method",
    )
    fails(capsys, [*words, "--run.epochs", "many"], "--run.epochs many: must be a whole number")
    fails(capsys, [*words, "stray"], "stray: not understood")
    fails(capsys, ["train", "nothing", *words[2:]], "not a readable TOML file nor a recipe")
    assert not (tmp_path / "run").exists()


def test_memory_that_torch_cannot_get_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(_: object) -> int:
        torch.empty(2**50)  # 4 PB: beyond the addresses of a process
        return 0

    monkeypatch.setattr("hpcphotoz.cli.run", too_large)
    assert main(["recipes"]) == 1
    assert capsys.readouterr().err == (
        "hpcphotoz: error: out of memory: torch asked for 4,503,600 GB at once: take a smaller network "
        "or batch, or fewer bins\n"
    )


def test_invalid_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["simulat"], "simulat: unknown command (did you mean simulate?); valid: simulate, ingest")
    fails(capsys, ["ingest", "tabel"], "tabel: unknown command (did you mean table?); valid: sdss-frames")
    fails(capsys, ["simulate", "/tmp/x", "--n", "ten"], "invalid int value: 'ten'")
    fails(capsys, ["inspect", "/tmp/x", "--deep"], "see hpcphotoz inspect --help")
    fails(capsys, ["launch", "slurm", "--nodes", "2"], "give the run after `--`")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train standard --data a --data b --out r", "--data is given twice: give all after one --data"),
        ("predict r --data a --data b --out o.hdf5", "--data is given twice: give it once"),
        ("evaluate r --where x --data a --where y", "--where is given twice: give it once"),
        ("ingest images o --keep a=b --keep c=d", "--keep is given twice: give all after one --keep"),
        ("train standard --run.epochs 1 --run.epochs=2", "--run.epochs is given twice: give it once"),
        ("train standard --where x --data.where x", "--where and --data.where mean the same: give one of"),
        ("launch slurm --nodes 1 --nodes 2 -- train", "--nodes is given twice: give it once"),
        (
            "launch local -- train standard --data a --data b --out r",
            "--data is given twice: give all after one --data",
        ),
    ],
)
def test_an_option_with_a_value_is_given_once(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, [*words.split()], says)


def test_a_word_that_an_option_took_is_asked_for_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    fails(
        capsys,
        [*"train --data d standard --out r".split()],
        "required: CONFIG: write CONFIG before --data, which takes several words",
    )
    ingest = "ingest images --survey sdss --images i --objects t --keep a out"
    fails(capsys, [*ingest.split()], "required: out: write out before --keep, which takes several words")
    with pytest.raises(BadInput, match="required: --data, --out .see"):
        cli.run(["train", "standard"])


def test_flags_and_repeatable_options_may_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    launch = ["launch", "slurm", "--dry-run", "--dry-run", "--extra", "qos=a", "--extra", "exclusive"]
    assert main([*launch, "--", "train", "standard", "--data", "d", "--out", "r"]) == 2  # no such data
    assert "twice" not in capsys.readouterr().err


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
    fails(capsys, ["launch", "slurm", "--gpus", "4", "--", *words], "(did you mean --gpus-per-node?)")
    fails(capsys, ["train", "standard", "--eps", "0.1"], "--eps: unknown option (did you mean --attack.eps?)")


def test_a_run_without_the_dashes_before_it_is_told_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "slurm", "--dry-run", "--nodes", "2"]
    for run in (["train", "mine.toml", "--data", "g", "--out", "r"], ["mine.toml", "--out=r"]):
        fails(capsys, [*words, *run], "launch: give the run after `--`, e.g. launch slurm --nodes 2 -- train")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--mem=64", "--mem 64: Slurm takes that for MB"),
        ("--time=1h", "--time 1h: write minutes"),
        ("--gpus-per-node=h100", "--gpus-per-node h100: write a number or type:number"),
        ("--srun=--export=NONE", "export is set by the launcher's own options"),
        ("--profile=perlmuter", "no such profile (did you mean perlmutter?)"),
        ("--time-minutes=240", "--time-minutes: is now --time, in Slurm's form"),
        ("--mem-gb=64", "--mem-gb: is now --mem, with its unit: --mem 64G"),
    ],
)
def test_what_slurm_would_not_take_is_refused(
    option: str, says: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launch", "slurm", "--dry-run", option, "--", "train", "standard"]
    fails(capsys, [*words, "--data", dataset, "--out", "run"], says)


def test_a_negative_number_with_an_exponent_is_a_value(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "adversarial", "--data", dataset, "--out", tmp_path / "run", "--attack.target", "shift"]
    fails(capsys, [*words, "--attack.target_value", "-5e-1"], "target shift -0.5: carries every galaxy")


def test_options_of_the_configuration_are_named_as_they_were_typed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "adversarial", "--data", dataset, "--out", tmp_path / "run"]
    for wrong, says in (
        (["--attack.eps", "nan"], "--attack.eps nan: must be a finite number"),
        (["--attack.steps=0"], "--attack.steps 0: must be "),
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


@pytest.mark.parametrize("words", ["train standard", "predict run", "attack run", "evaluate run"])
def test_an_empty_condition_is_not_every_object(
    words: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words.split(), "--data", dataset, "--out", tmp_path / "out", "--where"]
    fails(capsys, [*given, ""], "--where: an empty condition: write one, such as 'z_spec < 0.3', or leave")
    assert not (tmp_path / "out").exists()


def test_a_launch_without_a_target_lists_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["launch", "--", "train", "standard"], "required: local|slurm")
    fails(capsys, ["launch"], "required: local|slurm")
    fails(capsys, ["launch", "slrm", "--", "train"], "slrm: unknown command (did you mean slurm?)")


def test_a_misspelt_command_after_a_launch_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    launched = "launched are train, predict, evaluate, attack, ingest, simulate"
    for words in (["local"], ["slurm", "--chain", "2"], ["slurm", "--sweep", "run.seed=1"]):
        says = f"trian: unknown command (did you mean train?); {launched}"
        fails(capsys, ["launch", *words, "--", "trian", "standard"], says)
    fails(capsys, ["launch", "slurm", "--", "status"], f"status is for one process: run it here; {launched}")


def test_an_option_of_another_kind_of_launch_is_told_where_it_belongs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails(
        capsys, ["launch", "local", "--partition", "a", "--", "train"], "--partition: means nothing on this"
    )
    fails(capsys, ["launch", "local", "--nodes=2", "--", "train"], "leave it out, or use `launch slurm`")
    fails(capsys, ["launch", "--nodes", "2", "slurm", "--", "train"], "launch slurm --nodes ...")


def test_the_help_of_a_kind_of_launch_has_its_own_options_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", "--help"]) == 0
    assert "--partition" in capsys.readouterr().out
    assert main(["launch", "local", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--tasks-per-node" in shown and "--partition" not in shown


@pytest.mark.parametrize(
    "command", ["simulate", "ingest", "inspect", "train", "attack", "evaluate", "predict", "launch"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "usage: hpcphotoz" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["attack", "inspect", "index", "launch"])
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
