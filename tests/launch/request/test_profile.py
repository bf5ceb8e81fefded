"""Profiles: where they are found, what they may hold, and which options go before theirs."""

import re
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.request.profile import load_profile, plan_of, profile_files, user_folder
from tests.helpers.launch.golden import PROFILES


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "my config"))
    folder = tmp_path / "my config" / "hpcphotoz" / "profiles"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", PROFILES)
def test_a_shipped_profile_says_what_is_unverified_and_where_it_was_read(name: str) -> None:
    profile = load_profile(name)
    assert profile.description and profile.unverified
    assert name in ("cpu", "generic") or profile.read
    assert all(re.match(r"https?://\S+", address) for address in profile.read)
    plan = plan_of({}, profile)
    assert plan.comment.startswith(f"profile {name}; unverified: ")
    assert not plan.account, "the account is the user's"


def test_a_given_option_goes_before_the_profile_and_the_profile_before_the_default(own: Path) -> None:
    (own / "mine.toml").write_text('partition = "gpu"\nnodes = 3\ntime = 90\ngpus-per-node = 2\n')
    plan = plan_of({"nodes": 5, "time": None}, load_profile("mine"))
    assert (plan.nodes, plan.time_s, plan.partition, plan.gpus, plan.cpus_per_task) == (5, 5400, "gpu", 2, 2)


def test_repeatable_options_are_added_to_those_of_the_profile(own: Path) -> None:
    text = 'setup = ["a"]\nextra = ["hint=nomultithread", "exclusive"]\nsrun = ["--cpu-bind=cores"]\n'
    (own / "mine.toml").write_text(text)
    given = {"setup": ["b"], "extra": ["hint=compute_bound"], "srun": ["--mpi=none"]}
    plan = plan_of(given, load_profile("mine"))
    assert plan.setup == ("a", "b")
    assert plan.extra == ("exclusive", "hint=compute_bound")
    assert plan.srun == ("--cpu-bind=cores", "--mpi=none")


def test_a_given_container_replaces_the_conda_environment_of_the_profile(own: Path) -> None:
    (own / "mine.toml").write_text('conda = "photoz"\n')
    plan = plan_of({"container": "torch.sif", "conda": None}, load_profile("mine"))
    assert (plan.container, plan.conda) == ("torch.sif", "")


def test_a_profile_of_the_user_replaces_a_shipped_one(own: Path) -> None:
    (own / "perlmutter.toml").write_text('qos = "debug"\n')
    assert load_profile("perlmutter").options == {"qos": "debug"}
    assert profile_files()["perlmutter"] == own / "perlmutter.toml"


def test_a_profile_is_also_given_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a b.toml").write_text("nodes = 4\n")
    profile = load_profile(str(tmp_path / "a b.toml"))
    assert (profile.name, profile.options) == ("a b", {"nodes": 4})


def test_without_xdg_config_home_it_is_config_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert user_folder() == Path("/h/.config/hpcphotoz/profiles")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partiton = 'a'", "partiton: unknown key (did you mean partition?); valid: "),
        ("gpus_per_node = 4", "gpus_per_node: unknown key (did you mean gpus-per-node?)"),
        ("comment = 'a'", "comment: unknown key"),
        ("dependency = 'afterok:1'", "dependency: unknown key"),
        ("nodes = '2'", "nodes = '2': must be a whole number"),
        ("nodes = true", "nodes = True: must be a whole number"),
        ("nodes = 0", "--nodes 0: must be at least 1"),
        ("partition = ['a']", "partition = ['a']: must be a text or a whole number"),
        ("setup = 'module load a'", "setup = 'module load a': must be a list of texts"),
        ("mem = 64", "--mem 64: Slurm takes that for MB"),
        ("environment = ['A=1']", "environment: write a table"),
        ("[environment]\n'A B' = 1", "environment: 'A B' is not the name of a variable"),
        ('[environment]\nA = "x\\ny"', "has a control character"),
        ("srun = ['--export=NONE']", "export is set by the launcher's own options"),
        ("extra = ['time=3']", "time is set by the launcher's own options"),
        ('description = "a\\nb"\nunverified = ["c\\nd"]', "has a control character"),
        ("nodes = ", "cannot be read as TOML"),
    ],
)
def test_a_profile_is_refused_with_its_file(text: str, message: str, own: Path) -> None:
    (own / "mine.toml").write_text(text + "\n")
    with pytest.raises(BadInput, match=re.escape(f"{own}/mine.toml: ")) as refusal:
        load_profile("mine")
    assert message in str(refusal.value)


def test_an_unknown_profile_names_the_nearest_and_all(own: Path) -> None:
    with pytest.raises(BadInput, match="no such profile .did you mean perlmutter.*; there are cpu, frontier"):
        load_profile("perlmuter")
    with pytest.raises(BadInput, match="x.toml: no such file"):
        load_profile("x.toml")


def test_the_command_lists_profiles_and_prints_one(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "mine.toml").write_text('description = "our cluster"\n')
    assert main(["profiles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*PROFILES, "mine"])
    assert "our cluster (yours)" in lines[[*sorted([*PROFILES, "mine"])].index("mine")]
    assert main(["profiles", "snellius"]) == 0
    assert capsys.readouterr().out == profile_files()["snellius"].read_text()


def test_a_broken_profile_does_not_hide_the_others(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "broken.toml").write_text("nodez = 2\n")
    assert main(["profiles"]) == 2
    said = capsys.readouterr()
    assert "1 profile cannot be used: broken" in said.err
    lines = said.out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == sorted(names) == list(profile_files()) and "broken" in names
    assert [line for line in lines if "cannot be used" in line] == [lines[names.index("broken")]]
    assert "broken.toml: nodez: unknown key" in lines[names.index("broken")]
    assert main(["profiles", "broken"]) == 2
    said = capsys.readouterr()
    assert said.out == "nodez = 2\n" and "nodez: unknown key" in said.err


def test_a_dry_run_names_the_profile_below_the_first_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    words = ["launch", "slurm", "--profile", "snellius", "--nodes", "2", "--time", "1-0", "--dry-run", "--"]
    assert main([*words, "train", "standard", "--data", str(dataset), "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "#!/bin/bash" and lines[1].startswith("# profile snellius; unverified: never run")
    assert {"#SBATCH --partition=gpu_a100", "#SBATCH --nodes=2", "#SBATCH --time=1-0"} <= set(lines)
