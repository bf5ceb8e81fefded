"""Sinks get the lines of metrics.jsonl, each once also after a resume; one that fails ends no training."""

import json
import logging
import math
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcphotoz.config.load import configure, load
from hpcphotoz.errors import BadInput
from hpcphotoz.training.reporting import sinks
from hpcphotoz.training.reporting.scalars import scalars
from hpcphotoz.training.reporting.sinks import Sinks, check_sinks
from hpcphotoz.training.reporting.tensorboard import TensorBoardSink
from hpcphotoz.training.reporting.weights_and_biases import WeightsAndBiasesSink
from hpcphotoz.training.run.recorder import RunRecorder
from hpcphotoz.training.trainer import train
from tests.helpers.training.runs import config


def line(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "loss": float(step), "loss_adversarial": None, **more}


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_option_takes_words_and_refuses_others() -> None:
    assert load("standard", {"run.sinks": "tensorboard wandb"}).run.sinks == ["tensorboard", "wandb"]
    for wrong in ("mlflow", "wandb wandb"):
        with pytest.raises(BadInput, match="sinks"):
            load("standard", {"run.sinks": wrong})


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_refused_before_the_run_folder_is_made(
    name: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "find_spec", lambda package: None)
    with pytest.raises(
        BadInput, match=rf"run.sinks {name}: not installed: pip install 'hpcphotoz\[{name}\]'"
    ):
        train(config(sinks=[name]), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_figure_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """JSON knows no NaN: jq, JavaScript and others would refuse the line."""
    recorder = RunRecorder(tmp_path, 0, configure("test"), writes=True)
    recorder.write(3, 0, part="validation", n=4, sigma_mad=math.nan, bias=-math.inf, eta=0.5)
    recorder.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (line["sigma_mad"], line["bias"], line["eta"], line["n"]) == (None, None, 0.5, 4)


def test_a_line_becomes_its_numbers() -> None:
    found = scalars(line(3, part="checkpoint", folder="best", bytes=7, done=[1]))
    assert found == {"checkpoint/epoch": 0.0, "checkpoint/loss": 3.0, "checkpoint/bytes": 7.0}
    assert set(scalars(line(3))) == {"training/epoch", "training/loss"}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_folder_of_the_name_is_no_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()  # as wandb makes one in the working directory
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [each for each in sys.modules if each.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(BadInput, match=rf"run.sinks {name}: not installed"):
        check_sinks(config(sinks=[name]))


class Recording:
    """A sink that keeps its lines, and fails at one of them."""

    name = "recording"

    def __init__(self, fails_at: int | None = None) -> None:
        self.steps, self.closed, self._fails_at = list[int](), 0, fails_at

    def write(self, line: Mapping[str, Any]) -> None:
        if line["step"] == self._fails_at:
            raise RuntimeError("quota\nexceeded")
        self.steps.append(line["step"])

    def close(self) -> None:
        self.closed += 1


def test_a_failing_sink_is_said_once_and_off(caplog: pytest.LogCaptureFixture) -> None:
    several, bad, good = Sinks(), Recording(fails_at=2), Recording()
    several.append(bad)
    several.append(good)
    several.open("broken", lambda: Recording(1 // 0))
    for step in (1, 2, 3):
        several.write(line(step))
    several.close()
    several.close()
    assert (bad.steps, good.steps, bad.closed, good.closed) == ([1], [1, 2, 3], 1, 1)
    off = "failed, and is off until the run is started again"
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said[0].startswith(f"broken {off}: ZeroDivisionError: ")
    assert said[1:] == [f"recording {off}: RuntimeError: quota"]


def tensorboard_scalars(run: Path) -> dict[tuple[str, int], list[float]]:
    """Values by name and step, as TensorBoard shows them."""
    module = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs tensorboard: pip install 'hpcphotoz[tensorboard]'",
    )
    events = module.EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
    found: dict[tuple[str, int], list[float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found.setdefault((name, event.step), []).append(event.value)
    return found


def test_tensorboard_shows_every_number_once_after_resumes(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'hpcphotoz[tensorboard]'")
    out, options = tmp_path / "run", {"sinks": ["tensorboard"], "checkpoint_steps": 3}
    train(config(**options, max_steps=5), dataset, out)
    (out / "checkpoints" / "step-00000005.pt").unlink()  # as if it had been killed after step 5
    for best in (out / "best").glob("*.pt"):
        best.unlink()
    train(config(**options, max_steps=7), dataset, out)
    shown = tensorboard_scalars(out)
    wanted = {
        (name, one["step"]): value
        for one in lines_of(out)
        if one.get("part") != "checkpoint"  # how often the clock lets one be written differs
        for name, value in scalars(one).items()
    }
    assert {step for _, step in wanted} >= {4, 5, 6, 7}
    for key, value in wanted.items():
        assert shown[key] == [pytest.approx(value, rel=1e-6)], key  # float32


def test_tensorboard_hides_what_a_run_wrote_that_had_saved_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'hpcphotoz[tensorboard]'")
    for steps in (4, 2):  # killed before its first checkpoint, and started again
        sink = TensorBoardSink(tmp_path, 0)
        for step in range(steps):
            sink.write(line(step + 1, loss=float(steps)))
        sink.close()
    shown = tensorboard_scalars(tmp_path)
    losses = {step: values for (name, step), values in shown.items() if name == "training/loss"}
    assert losses == {1: [2.0], 2: [2.0]}


class Wandb:
    """Stands in for the module wandb: records what it is given."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.Settings = SimpleNamespace
        self.__spec__ = find_spec("json")  # of a module that is installed

    def init(self, **options: Any) -> "Wandb":
        self.inits.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return stand_in


def test_wandb_is_offline_unless_the_environment_says_otherwise(
    wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WeightsAndBiasesSink(tmp_path, configure("test"), 0).close()
    monkeypatch.setenv("WANDB_MODE", "online")
    WeightsAndBiasesSink(tmp_path, configure("test"), 0).close()
    first, second = wandb.inits
    assert (first["mode"], first["resume"]) == ("offline", None)
    assert (second["mode"], second["resume"]) == ("online", "allow")
    assert first["id"] == second["id"] and first["name"] == tmp_path.name
    assert first["config"]["attack"]["eps"] == configure("test").attack.eps
    settings = vars(first["settings"])  # without a limit, ranks would wait for a network that is not there
    assert settings["console"] == "off" and 0 < settings["finish_timeout"] <= 60 and wandb.finished == 2


def test_wandb_online_gets_each_step_once_in_rising_order(
    wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")

    def sent(seen: int, *lines: dict[str, Any]) -> list[int]:
        before, sink = len(wandb.logged), WeightsAndBiasesSink(tmp_path, configure("test"), seen)
        for one in lines:
            sink.write(one)
        sink.close()
        return [step for step, _ in wandb.logged[before:]]

    save = line(2, part="checkpoint")
    assert sent(0, line(1), line(2), line(3), save, line(9)) == [1, 2, 3, 3, 9]
    # Resumed from step 2, and killed at step 4: it knew of step 9 by the metrics that it found.
    assert sent(9, line(3), line(4)) == []
    # Resumed again: metrics.jsonl now ends at step 4, and wandb has step 9.
    assert sent(4, line(3), line(9), line(10)) == [10]
    assert {one["id"] for one in wandb.inits} == {wandb.inits[0]["id"]}


def test_wandb_offline_writes_the_whole_curve_at_each_start(
    wandb: Wandb, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a start replace those of another as they are synced."""
    out, options = tmp_path / "run", {"sinks": ["wandb"], "log_steps": 1}
    train(config(**options, max_steps=4), dataset, out)
    before = len(wandb.logged)
    train(config(**options, max_steps=6), dataset, out)
    losses = [step for step, values in wandb.logged[before:] if "training/loss" in values]
    assert losses == [1, 2, 3, 4, 5, 6]
    monkeypatch.setenv("WANDB_MODE", "online")  # nothing was sent yet
    before = len(wandb.logged)
    train(config(**options, max_steps=7), dataset, out)
    losses = [step for step, values in wandb.logged[before:] if "training/loss" in values]
    assert losses == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_sends_its_lines(wandb: Wandb, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(sinks=["wandb"], max_steps=4), dataset, out)
    wanted = [scalars(one) for one in lines_of(out)]
    assert wanted and [values for _, values in wandb.logged] == wanted
    assert wandb.finished == 1 and json.loads((out / "wandb" / "run.json").read_text())["step"] == 0


REAL = """
import sys
from pathlib import Path
from hpcphotoz.config.load import configure
from hpcphotoz.training.reporting.weights_and_biases import WeightsAndBiasesSink

sink = WeightsAndBiasesSink(Path(sys.argv[1]), configure("test"), 0)
for step in (1, 2, 3):
    sink.write({"step": step, "epoch": 0, "loss": step / 2})
sink.close()
"""


@pytest.mark.slow
def test_wandb_itself_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install 'hpcphotoz[wandb]'")
    from wandb.proto.wandb_internal_pb2 import Record

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens: whatever needs a network fails
    monkeypatch.delenv("WANDB_MODE", raising=False)
    command = [sys.executable, "-c", REAL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "wandb" not in done.stderr  # it prints nothing between our lines
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content, place, losses = path.read_bytes(), 7, list[float]()
    while place + 7 <= len(content):  # records of LevelDB's log: checksum, length, type
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        record = Record.FromString(content[place + 7 : place + 7 + length])
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        losses += [json.loads(items["training/loss"])] if "training/loss" in items else []
        place += 7 + length
    assert losses == [0.5, 1.0, 1.5]
