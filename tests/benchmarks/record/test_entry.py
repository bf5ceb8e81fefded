"""Entries of the record table are recipes that `hpcphotoz train` and the peer loop take."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.peers.driver import peer_task
from benchmarks.record import entry as entries
from benchmarks.record.task import FULL, QUICK, TASKS
from benchmarks.record.training import configured
from hpcphotoz.config.load import load
from hpcphotoz.errors import BadInput

GOOD = '[entry]\nchanged = "any"\nprogram = "hpcphotoz"\nranks = 2\n[run]\nepochs = 3\n'


@pytest.mark.parametrize("name", entries.names())
def test_every_entry_can_be_started(name: str) -> None:
    entry = entries.read(name)
    assert entry.name == name and entry.changed and entry.config.adversarial.fraction > 0
    assert entry.config.compute.precision in ("fp32", "tf32") or entry.program == "hpcphotoz"
    assert entry.config.model.name == {"cpu": "compact", "gpu": "inception"}[entry.task]
    if entry.program == "peer":
        task = peer_task(entry.config, Path("data"), 64, [0.1] * 5, 7, 1, 1, Path("weights.pt"))
        assert task["attack_steps"] == entry.config.attack.steps and task["save"] == "weights.pt"
        assert entry.config.data.validation == 0, "the loop holds nothing out"
    assert configured(entry.config, 5, FULL).run.seed == 5
    assert configured(entry.config, 5, FULL).run.epochs == entry.config.run.epochs
    assert configured(entry.config, 5, QUICK).run.epochs == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("ranks", 'task = "tpu"\nranks'), "task 'tpu': want cpu or gpu"),
        (
            GOOD.replace("ranks = 2\n", ""),
            "section entry: no key 'ranks': want the keys changed, program, ranks",
        ),
        (
            GOOD.replace("ranks", "rank = 1\nranks"),
            "section entry: unknown key 'rank': want the keys changed",
        ),
        (GOOD.replace("[entry]", "[[entry]]"), "section entry: no key 'changed'"),
        (GOOD.replace("[entry]", "[other]"), "section entry: no key 'changed'"),
        (GOOD.replace('"any"', "3"), "changed 3: want one line of text"),
        (GOOD.replace('"any"', "'a | b'"), "want one line of text"),
        (GOOD.replace('"hpcphotoz"', '"mine"'), "program 'mine': want hpcphotoz or peer"),
        (GOOD.replace("ranks = 2", "ranks = -1"), "ranks -1: want a number"),
        (GOOD.replace("ranks = 2", "ranks = true"), "ranks True: want a number"),
        (GOOD.replace('"hpcphotoz"\nranks = 2', '"peer"\nranks = 0'), "ranks 0: want a number"),
        (GOOD.replace("epochs = 3", "epoch = 3"), "epoch"),
        (GOOD.replace("= 3", "="), "not TOML"),
    ],
)
def test_an_entry_that_means_nothing_is_refused(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "FOLDER", tmp_path)
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(text)
    assert entries.read("good").config.run.epochs == 3 and entries.read("good").task == "cpu"
    with pytest.raises(BadInput, match=said):
        entries.read("bad")
    with pytest.raises(BadInput, match="entry 'none': not known; valid: bad, good"):
        entries.read("none")


def test_an_entry_that_is_not_in_the_commit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "FOLDER", tmp_path)
    monkeypatch.setattr(entries, "COMMIT", "one")
    for name in ("known", "new"):
        (tmp_path / f"{name}.toml").write_text(GOOD)

    def commits() -> list[str | None]:
        return [entries.read(name).commit for name in ("known", "new")]

    assert commits() == ["one", "one"], "not a repository: a snapshot, which says its own commit"
    for words in (["init", "-q"], ["add", "known.toml"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, timeout=60)
    assert commits() == ["one", "one-dirty"]
    monkeypatch.setattr(entries, "COMMIT", "one-dirty")
    assert commits() == ["one-dirty", "one-dirty"]
    monkeypatch.setattr(entries, "COMMIT", None)
    assert commits() == [None, None]


def test_options_that_the_peer_loop_lacks_are_refused() -> None:
    config = entries.read("adversarial-2026").config
    with pytest.raises(ValueError, match="schedules constant and one_cycle alone"):
        peer_task(config, Path("data"), 64, [0.1] * 5, 7, 1, 1)


def test_the_default_entry_of_a_gpu_is_the_recipe_as_it_is() -> None:
    entry = entries.read("inception-adversarial")
    assert entry.config == load("inception-adversarial") and entry.task == "gpu"
    assert set(TASKS) == {entries.read(name).task for name in entries.names()}
