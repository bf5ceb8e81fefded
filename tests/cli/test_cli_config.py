"""The command `config` prints a complete commented configuration from a recipe or an old file."""

from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.config import load as config
from tests.helpers.commands import fails

OLD = """\
[model]
name = "cnn"

[training]
seed = 3
epochs = 7
global_batch = 64
overlap = "ranks"
transfer = "bf16"
augment = false
learning_rate = 0.002
objective = "append"
precision = "fp32"
merged = "auto"
padded = "off"

[attack]
fraction = 0.25
eps = 0.2
"""
TODAY: dict[str, object] = {
    **{"name": "cnn", "seed": 3, "epochs": 7, "global_batch": 64, "mode": "ranks", "augment": False},
    **{"images_transfer": "bf16", "learning_rate": 0.002, "objective": "append", "precision": "fp32"},
    **{"fraction": 0.25, "eps": 0.2},
}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["config", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", config.recipes())
def test_the_printed_configuration_of_a_recipe_equals_the_recipe(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(printed(capsys, recipe))
    assert config.load(str(path)) == config.load(recipe)
    assert path.read_text().startswith(f"# Made from {recipe}. Train with: hpcphotoz train THIS_FILE")


def test_options_given_with_a_recipe_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "adversarial", "--run.epochs", "7", "--attack.eps=0.3")
    assert "\nepochs = 7\n" in text and "\neps = 0.3\n" in text


def test_a_file_of_an_earlier_version_is_refused_and_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(OLD)
    words: list[object] = ["train", old, "--data", tmp_path, "--out", tmp_path / "run"]
    fails(capsys, words, "training.seed is now run.seed; training.epochs is now run.epochs; training.global")
    fails(capsys, words, f"and 4 more: `hpcphotoz config {old}` prints it with today's names")
    new.write_text(printed(capsys, str(old)))
    assert config.load(str(new)) == config.configure("test", **TODAY)


def test_an_unknown_key_of_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text("[training]\nsead = 3\n")
    fails(capsys, ["config", tmp_path / "c.toml"], "c.toml: unknown key 'training")
