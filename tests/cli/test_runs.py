"""`inspect RUN` and `compare RUN RUN`: text, strict JSON, a picture, and one line for a mistake."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

from hpcphotoz.__main__ import main
from tests.helpers.commands import fails


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A standard and an adversarial run with validations."""
    folder = tmp_path_factory.mktemp("runs")
    small = ["--data", str(dataset), "--run.log_steps", "1", "--data.validation", "0.2", "--device", "cpu"]
    given = [*small, "--model.width", "8", "--model.bins", "20", "--run.global_batch", "16"]
    for name, steps in (("standard", "4"), ("adversarial", "5")):
        words = ["train", name, "--out", str(folder / name), *given, "--run.max_steps", steps]
        with mock.patch.object(sys, "argv", ["hpcphotoz", *words]):  # which provenance.json records
            assert main(words) == 0
    return folder / "standard", folder / "adversarial"


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def strict(text: str) -> dict[str, Any]:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def test_inspect_summarises_a_run(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "inspect", runs[1])
    assert text.startswith(f"{runs[1]}: finished at step 5")
    for part in (
        "unlike those of the recipe adversarial",
        "model.width = 8 (",
        "images/s",
        "loss (*) against",
    ):
        assert part in text
    assert "sigma_mad*" in text and "best by run.criterion clean" in text and "faults: none" in text
    assert "starts: 1" in text and "checkpoints/step-00000005.pt" in text
    assert max(map(len, text.splitlines())) < 200 and text.isascii()


def test_inspect_gives_json(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    facts = strict(printed(capsys, "inspect", runs[0], "--json"))
    assert facts["state"]["state"] == "finished" and facts["recipe"] == "standard"
    assert facts["curve"]["step"] == [1, 2, 3, 4] and len(facts["curve"]["loss"]) == 4


def test_figures_that_are_not_finite_are_null(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epoch": 1, "loss": NaN, "images_per_s": 1.0, "data_wait": 0.0}\n')
    assert strict(printed(capsys, "inspect", run, "--json"))["curve"]["loss"][-1] is None
    assert "loss (*)" in printed(capsys, "inspect", run)


def test_control_characters_of_a_log_are_escaped(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (run / "logs" / "rank-9.log").write_text("2026-11-28 12:00:00,1 ERROR hpcphotoz.a: \x1b[2Jgone\n")
    text = printed(capsys, "inspect", run)
    assert "\x1b" not in text and "error: \\x1b[2Jgone" in text


def test_compare_shows_the_difference(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "compare", *runs)
    for part in (
        "adversarial.fraction = 0.0, 0.5",
        "loss: at 4 equal steps",
        "b / a = ",
        "weights at steps 4, 5",
    ):
        assert part in text
    facts = strict(printed(capsys, "compare", *runs, "--json"))
    assert facts["options"]["adversarial.fraction"] == [0.0, 0.5] and facts["data"]["same"]
    assert facts["loss"]["steps"] == [1, 2, 3, 4]


def test_curves_are_drawn(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'hpcphotoz[report]'")
    for words in (["inspect", runs[0]], ["compare", *runs]):
        out = tmp_path / f"{words[0]}.png"
        printed(capsys, *words, "--plot", out)
        assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and out.stat().st_size > 10_000


def test_mistakes_are_one_line(
    runs: tuple[Path, Path], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, ["inspect", runs[0], "--verify"], "--verify: is for datasets")
    fails(capsys, ["inspect", runs[0], "--plot", tmp_path / "a.pdf"], "a name that ends in .png")
    fails(capsys, ["compare", runs[0], dataset], f"{dataset}: not a run folder")
    fails(capsys, ["compare", runs[0], tmp_path / "none"], "not a run folder")
    fails(capsys, ["compare", runs[0]], "OTHER")
    for name in ("config.toml", "provenance.json"):
        shutil.copy(runs[0] / name, tmp_path / name)
    fails(capsys, ["compare", tmp_path, runs[0]], "no line of metrics yet")
    fails(capsys, ["inspect", tmp_path, "--plot", tmp_path / "a.png"], "nothing to plot")
    assert "no line of metrics yet" in printed(capsys, "inspect", tmp_path)
    (tmp_path / "provenance.json").unlink()
    fails(capsys, ["inspect", tmp_path], "not a run folder")
