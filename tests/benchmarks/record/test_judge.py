"""The judge runs the attacks of the task, and refuses networks that miss the target or mask gradients."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.record import judge as judging
from benchmarks.record.judge import judge, shortcomings
from benchmarks.record.task import FULL, TASKS


def figures(clean: float = 0.016, robust: float = 0.021, **others: float) -> dict[str, Any]:
    found = {"clean": {"sigma_mad": clean}, "robust": {"sigma_mad": robust}}
    return {**found, "confirmations": {"apgd_same_objects": 0.02, **others}} if others else found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (figures(), None),
        (figures(0.0165, 0.0215), None),
        (figures(clean=0.0166), "clean sigma_MAD 0.0166 > 0.0165"),
        (figures(robust=0.0216), "robust sigma_MAD 0.0216 > 0.0215"),
        (figures(robust=float("nan")), "robust sigma_MAD nan"),
        (figures(margin=0.0212, probability_margin=0.0215, transfer=0.018, square=0.0205), None),
        (figures(margin=0.0225), "margin: sigma_MAD 0.0225 > 0.0221: its gradients mislead APGD"),
        (figures(transfer=0.0225), "transfer: sigma_MAD"),
        # Square is compared with APGD on the same galaxies, of which there are fewer.
        (figures(square=0.0215), "square: sigma_MAD 0.0215 > 0.0210"),
    ],
)
def test_what_misses_the_target_or_misleads_apgd_does_not_pass(
    found: dict[str, Any], said: str | None
) -> None:
    assert (shortcomings(found) == []) if said is None else shortcomings(found)[0].startswith(said)


def test_a_task_without_a_target_gives_no_verdict() -> None:
    gpu = TASKS["gpu"]
    (said,) = shortcomings(figures(clean=0.001, robust=0.001), gpu)
    assert said.startswith("no verdict: the target of the task gpu is not set: train")
    there = replace(gpu, clean=0.02, robust=0.03)
    assert shortcomings(figures(0.02, 0.03), there) == []
    assert shortcomings(figures(0.021, 0.03), there) == ["clean sigma_MAD 0.0210 > 0.02"]


def test_every_attack_is_that_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, devices = list[str](), set[str]()

    def evaluate(networks: list[Path], data: Path, out: Path, *words: object, device: str) -> dict[str, Any]:
        devices.add(device)
        asked.append(" ".join([out.name, *map(str, words)]))
        metrics = {"sigma_mad": 0.02 + 0.001 * len(asked), "eta": 0.0, "bias": 0.0, "crps": 0.0, "n": 9}
        one = {"clean": {**metrics, "eps_sky_sigma": 0}, "apgd": metrics, "square": metrics}
        transfer = {"a": {"b": {"sigma_mad": 0.3}}, "b": {"a": {"sigma_mad": 0.4}}}
        return {"a": one, "b": one, "transfer": transfer if len(networks) == 2 else {}}

    monkeypatch.setattr(judging, "evaluate", evaluate)
    networks = {"a": Path("a"), "b": Path("b")}
    found = judge(FULL, networks, tmp_path, tmp_path, confirm=True)
    assert asked == [
        "apgd --attacks apgd --steps 50 --restarts 2",
        "margin --attacks apgd --steps 50 --loss margin",
        "probability_margin --attacks apgd --steps 50 --loss probability_margin",
        "square --attacks square apgd --steps 50 --queries 1000 --limit 256",
    ]
    assert found["a"]["robust"] == {"sigma_mad": 0.021, "eta": 0.0, "bias": 0.0, "crps": 0.0, "n": 9}
    assert found["a"]["confirmations"] == {
        **{"margin": 0.022, "probability_margin": 0.023, "transfer": 0.4},
        **{"square": 0.024, "apgd_same_objects": 0.024},
    }
    assert devices == {"cpu"}
    alone = judge(FULL, {"a": Path("a")}, tmp_path, tmp_path, confirm=True)
    assert "transfer" not in alone["a"]["confirmations"]
    assert set(judge(FULL, networks, tmp_path, tmp_path, confirm=False)["b"]) == {"clean", "robust"}
    judge(TASKS["gpu"], networks, tmp_path, tmp_path, confirm=True)
    assert devices == {"cpu", "cuda"} and asked[-4:] == asked[:4]


def test_evaluate_is_called_in_float32_with_the_radius_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def launch(name: str, python: Path, ranks: int, words: list[object], timeout_s: float) -> None:
        asked.append(list(map(str, words)))
        assert python == Path(sys.executable) and ranks == 0
        (tmp_path / "reports/apgd").mkdir()
        (tmp_path / "reports/apgd/metrics.json").write_text('{"a": 1}')

    monkeypatch.setattr(judging, "launch", launch)
    found = judging.evaluate(
        [Path("a"), Path("b")], Path("data"), tmp_path / "reports/apgd", "--steps", 50, device="cuda"
    )
    words = f"-m hpcphotoz evaluate a b --data data --out {tmp_path}/reports/apgd --device cuda"
    assert found == {"a": 1} and asked == [f"{words} --precision fp32 --eps 0.1 --steps 50".split()]
