"""One strict configuration path."""

from pathlib import Path

import pytest

from hpcphotoz import config
from hpcphotoz.errors import BadInput


@pytest.mark.parametrize("name", config.recipes())
def test_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    loaded = config.load(name)
    (tmp_path / "c.toml").write_text(config.to_toml(loaded))
    assert config.load(str(tmp_path / "c.toml")) == loaded


def test_overrides_are_typed() -> None:
    loaded = config.load(
        "standard", {"training.epochs": "3", "attack.eps": "0.25", "training.augment": "false"}
    )
    assert (loaded.training.epochs, loaded.attack.eps, loaded.training.augment) == (3, 0.25, False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[training]\nepoch = 3", "unknown key 'training.epoch'; valid: .*training.epochs"),
        ("[trainings]\nepochs = 3", "unknown key 'trainings'; valid: model, data, training, attack"),
        ("[training]\nepochs = 0", "training.epochs = 0"),
        ("[training]\nepochs = 'many'", "training.epochs = 'many'"),
        ("[attack]\nfraction = 1.5", "attack.fraction = 1.5"),
        ("[attack]\neps = nan", "attack.eps"),
        ("[model]\nz_min = 0.5", "z_min 0.5 must be below z_max 0.4"),
        ("[training", "not TOML"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=says) as error:
        config.load(str(path))
    assert str(path) in str(error.value)


def test_unknown_override_lists_the_valid_ones() -> None:
    with pytest.raises(
        BadInput, match=r"--attack.epsilon: unknown option; valid: attack.fraction, .*attack.eps"
    ):
        config.load("standard", {"attack.epsilon": "1"})


def test_a_missing_file_lists_the_recipes() -> None:
    with pytest.raises(BadInput, match="nowhere.toml.*standard"):
        config.load("nowhere.toml")


def test_every_option_is_described() -> None:
    assert all(text for _, text in config.options().values())
