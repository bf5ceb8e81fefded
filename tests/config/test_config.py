"""One strict configuration path."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.config import Config
from hpcphotoz.config import load as config
from hpcphotoz.config.renamed import RENAMED
from hpcphotoz.errors import BadInput
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("name", config.recipes())
def test_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    loaded = config.load(name)
    (tmp_path / "c.toml").write_text(config.to_toml(loaded))
    assert config.load(str(tmp_path / "c.toml")) == loaded


@pytest.mark.parametrize("name", config.recipes())
def test_recipes_leave_the_precision_to_the_device(name: str) -> None:
    compute = config.load(name).compute
    assert (compute.precision, compute.attack_precision) == ("auto", "training")


def test_overrides_are_typed() -> None:
    loaded = config.load("standard", {"run.epochs": "3", "attack.eps": "0.25", "data.augment": "false"})
    assert (loaded.run.epochs, loaded.attack.eps, loaded.data.augment) == (3, 0.25, False)
    assert type(loaded.data.where) is str
    attackers = {"overlap.mode": "ranks", "overlap.attackers": "2", "adversarial.validation_objects": "auto"}
    assert config.load("adversarial", attackers).overlap.attackers == 2
    assert config.value_of("run.epochs", "3") == 3


def test_text_in_a_call_is_no_number() -> None:
    with pytest.raises(BadInput, match="^train: run.epochs = '3': want a number, not text: write epochs = 3"):
        config.configure("train", epochs="3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[run]\nepoch = 3", "unknown key 'run.epoch'.*; valid: .*run.epochs"),
        (
            "[runs]\nepochs = 3",
            "unknown key 'runs'.*; valid: model, data, optimiser, adversarial, ",
        ),
        ("[run]\nepochs = 0", "run.epochs = 0"),
        ("[run]\nepochs = 'many'", "run.epochs = 'many'"),
        ("[adversarial]\nfraction = 1.5", "adversarial.fraction = 1.5"),
        ("[attack]\neps = nan", "attack.eps"),
        ("[run]\nepochs = '3'", "run.epochs = '3': want a number, not text: write epochs = 3"),
        ("[attack]\neps = ' 1e-1 '", "attack.eps = ' 1e-1 ': want a number, .*: write eps = 1e-1$"),
        ("[overlap]\nmode = 'ranks'\nattackers = '2'", "overlap.attackers = '2': .*: write attackers = 2"),
        ("[data]\naugment = 'no'", "data.augment = 'no': want true or false, without quotes"),
        *(
            (f"[data]\naugment = {n}", f"augment = {n}: want true or false, not a number$")
            for n in ("0", "1", "-0.0")
        ),
        ("[model]\nz_min = 0.5", "z_min 0.5 must be below z_max 0.4"),
        ("[run", "not TOML"),
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
        BadInput, match=r"--attack.epsilon: unknown option .*; valid: attack.method, .*attack.eps"
    ):
        config.load("standard", {"attack.epsilon": "1"})


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(BadInput, match="/dev/zero: more than 1048576 characters"):
        config.load("/dev/zero")


def test_a_missing_file_lists_the_recipes() -> None:
    with pytest.raises(BadInput, match=r"adverserial: .*\(did you mean adversarial\?\): No such file"):
        config.load("adverserial")
    with pytest.raises(BadInput, match="nowhere.toml.*standard"):
        config.load("nowhere.toml")


def test_every_option_is_described() -> None:
    assert all(text for _, text in config.options().values())


@pytest.mark.parametrize("key", ["run.epochs", "optimiser.learning_rate", "attack.eps", "model.bins"])
@pytest.mark.parametrize("value", ["true", "false"])
def test_a_boolean_is_no_number(key: str, value: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    (tmp_path / "c.toml").write_text(f"[{section}]\n{name} = {value}\n")
    with pytest.raises(BadInput, match=f"{key} = {value.capitalize()}: want a number"):
        config.load(str(tmp_path / "c.toml"))


@pytest.mark.parametrize("key", ["data.block_rows", "run.global_batch", "model.bins"])
def test_a_count_has_an_upper_limit(key: str) -> None:
    with pytest.raises(BadInput, match=f"--{key} 1000000000000000000: want below 2\\^31"):
        config.load("standard", {key: str(10**18)})


FLOATS = [
    f"{section}.{key}"
    for section, outer in Config.model_fields.items()
    for key, field in type(outer.default).model_fields.items()
    if field.annotation is float and key != "wall_minutes"  # computed with in float64 alone
]


@pytest.mark.parametrize("key", FLOATS)
def test_a_number_that_float32_cannot_hold_is_refused(key: str) -> None:
    others = {"attack.target": "shift", "model.z_min": "0"} if key == "attack.target_value" else {}
    with pytest.raises(BadInput, match=rf"--{key} 1e39: must be "):
        config.load("adversarial", {**others, key: "1e39"})


def test_reasons_are_plain_and_a_name_with_its_section_is_recognised() -> None:
    for key, text, says in (
        ("run.epochs", "0", "must be at least 1"),
        ("run.epochs", "many", "must be a whole number"),
        ("optimiser.learning_rate", "much", "must be a number"),
        ("attack.method", "fgsn", "must be 'fgsm', 'pgd', 'apgd' or 'square'"),
    ):
        with pytest.raises(BadInput, match=f"^--{key} {text}: {says}$"):
            config.load("adversarial", {key: text})
    with pytest.raises(BadInput, match=r"unknown option attack.eps \(did you mean eps\?\)"):
        config.named({"attack.eps": -1})


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes("\ufeff[run]\nepochs = 3\n".encode())
    assert config.load(str(tmp_path / "c.toml")).run.epochs == 3


@pytest.mark.parametrize(
    "text", ["a = " + 5000 * "[" + 5000 * "]", "a = " + 5000 * "9", 5000 * "a." + "a = 1"]
)
def test_unparsable_text_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(BadInput, match=r"c\.toml: (nested too deeply|not TOML|unknown key)"):
        config.load(str(tmp_path / "c.toml"))


def test_an_unknown_name_suggests_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[run]\nepoch = 3\n")
    with pytest.raises(BadInput, match=r"unknown key 'run.epoch' \(did you mean run.epochs\?\); valid"):
        config.load(str(tmp_path / "c.toml"))
    (tmp_path / "c.toml").write_text("[atack]\nepochs = 3\n")
    with pytest.raises(BadInput, match=r"unknown key 'atack' \(did you mean attack\?\)"):
        config.load(str(tmp_path / "c.toml"))


def test_an_old_name_in_a_file_is_refused_with_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[training]\nseed = 3\noverlap = 'off'\n\n[attack]\nfraction = 0.5\n")
    with pytest.raises(
        BadInput, match="training.seed is now run.seed; training.overlap is now overlap.mode; "
    ) as error:
        config.load(str(tmp_path / "c.toml"))
    assert "attack.fraction is now adversarial.fraction" in str(error.value) and "\n" not in str(error.value)
    assert "hpcphotoz config" in str(error.value)


def test_an_old_name_on_the_command_line_is_refused_with_the_new_one() -> None:
    with pytest.raises(BadInput, match="--training.global_batch: is now --run.global_batch"):
        config.load("standard", {"training.global_batch": "3"})
    with pytest.raises(BadInput, match=r"--training.epoch: unknown option \(did you mean run.epochs\?\)"):
        config.load("standard", {"training.epoch": "3"})
    with pytest.raises(BadInput, match="--training.padded: is no longer an option"):
        config.load("standard", {"training.padded": "on"})
    with pytest.raises(BadInput, match="--data.read_ahead: is now --data.windows_ahead"):
        config.load("standard", {"data.read_ahead": "2"})


def test_only_of_a_file_is_it_said_that_the_command_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "two words.toml"
    path.write_text("[training]\nseed = 3\n")
    with pytest.raises(BadInput, match=f"`hpcphotoz config '{path}'` prints it"):
        config.load(str(path))
    with pytest.raises(BadInput, match="^attack: attack.fraction is now adversarial.fraction$"):
        config.parse({"attack": {"fraction": 0.5}}, "attack")


@pytest.mark.parametrize("sections", ["[training]\n{}\n[run]\n{}", "[run]\n{}\n[training]\n{}"])
def test_an_option_under_both_names_is_refused(tmp_path: Path, sections: str) -> None:
    (tmp_path / "c.toml").write_text(sections.format("epochs = 1", "epochs = 5"))
    with pytest.raises(BadInput, match="c.toml: training.epochs is now run.epochs, which is given too"):
        config.load(str(tmp_path / "c.toml"), convert=True)


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("training", ["", "\n[training]\noverlap = 'ranks'"])
def test_a_section_that_is_no_table_is_refused(tmp_path: Path, training: str, convert: bool) -> None:
    (tmp_path / "c.toml").write_text("overlap = 'ranks'" + training)
    with pytest.raises(BadInput, match=r"c.toml: overlap = 'ranks': want a table \[overlap\]"):
        config.load(str(tmp_path / "c.toml"), {"overlap.mode": "off"}, convert)


def test_a_configuration_of_an_earlier_version_is_converted(tmp_path: Path) -> None:
    old = "[training]\nseed = 3\noverlap = 'ranks'\ntransfer = 'int8'\nmerged = 'auto'\npadded = 'off'\n"
    old += "\n[attack]\nfraction = 0.25\neps = 0.2\n[data]\nread_ahead = 2\n"
    (tmp_path / "c.toml").write_text(old)
    found = config.load(str(tmp_path / "c.toml"), convert=True)
    new: dict[str, Any] = {
        "mode": "ranks",
        "images_transfer": "int8",
        "fraction": 0.25,
        "eps": 0.2,
        "windows_ahead": 2,
    }
    assert found == config.configure("test", seed=3, **new)


def test_the_table_of_the_changelog_lists_every_old_name() -> None:
    told = {}
    table = (ROOT / "CHANGELOG.md").read_text().partition("| old | new |\n|---|---|\n")[2]
    for row in itertools.takewhile(lambda line: line.startswith("|"), table.splitlines()):
        old, new = re.findall("`(.+?)`", row)
        section, _, keys = old.partition(".")
        for key in keys.strip("{}").split(", "):
            told[f"{section}.{key}"] = new.replace("*", key)
    assert told == RENAMED


@pytest.mark.parametrize("name", config.recipes())
def test_the_commented_file_holds_every_option_and_reads_back_the_same(name: str, tmp_path: Path) -> None:
    loaded = config.load(name)
    text = config.commented_toml(loaded, "A title.")
    (tmp_path / "c.toml").write_text(text)
    assert config.load(str(tmp_path / "c.toml")) == loaded
    for option in config.options():
        assert f"\n{option.partition('.')[2]} = " in text
    assert max(map(len, text.splitlines())) <= 110


def test_bare_names_of_options_are_unique() -> None:
    names = [name.partition(".")[2] for name in config.options()]
    assert len(set(names)) == len(names)
    with pytest.raises(BadInput, match=r"test: unknown option epoch \(did you mean epochs\?\)"):
        config.configure("test", epoch=3)


def test_an_option_that_is_gone_is_refused_in_a_file_by_name(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[training]\npadded = 'on'\n")
    with pytest.raises(BadInput, match="c.toml: training.padded: no longer an option: leave it out"):
        config.load(str(tmp_path / "c.toml"))
