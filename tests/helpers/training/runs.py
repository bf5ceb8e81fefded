"""Small training runs, and what tests read from their run folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hpcphotoz.config import Config
from hpcphotoz.config.load import configure, to_toml
from hpcphotoz.training.run import checkpoint
from tests.helpers import ranks

# 75 objects, 67 or so to train on, batches of 16: the last batch of an epoch is a partial one, and 3 ranks
# share unevenly.
OPTIONS: dict[str, object] = {
    **{"bins": 20, "width": 8},
    **{"block_rows": 8, "window_blocks": 3, "validation": 0.1},
    **{"epochs": 4, "global_batch": 16, "log_steps": 1, "checkpoint_steps": 3},
    **{"warmup_steps": 2, "learning_rate": 3e-3, "precision": "fp32"},
    **{"fraction": 0.5, "eps": 0.3, "steps": 2},
}

# A run of the Python functions, of which the network matters and not the loss curve.
SMALL: dict[str, Any] = {"bins": 20, "width": 8, "global_batch": 16, "max_steps": 6, "precision": "fp32"}


# Sums over 16 objects in another order and in several parts: a few float32 roundings (6e-8) a step in the
# loss, fed back through Adam. Seen after 20 steps: 2e-7 on 3 ranks. A wrong sample, augmentation, start or
# weight changes the loss of a step by more than 1e-2.
SAME = 1e-5


PER_EPOCH = 5  # steps: 67 objects in batches of 16


def state_of(module: nn.Module, step: int) -> checkpoint.State:
    """A state that a run of some network might save after a step, without its optimiser."""
    facts = {
        "manifest_sha256": "",
        "bands": ["u"],
        "stamp": 8,
        "pixel_scale": 0.4,
        "scale": [1.0],
        "order": 2,
    }
    return {"model": module.state_dict(), "step": step, "config": Config().model_dump(), **facts}


def config(**options: object) -> Config:
    given = {**OPTIONS, **options}
    if ":" in str(given.get("name")):  # a network of the user, which takes no width
        del given["width"]
    return configure("test", **given)


def arguments(dataset: Path, out: Path, tmp_path: Path, **options: object) -> list[str]:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config(**options)))
    return ["train", str(path), "--data", str(dataset), "--out", str(out)]


def assert_same_curve(run: Path, reference: Path, tolerance: float) -> None:
    ours, theirs = ranks.curve(run), ranks.curve(reference)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert max(abs(a - b) for (_, a), (_, b) in zip(ours, theirs, strict=True)) <= tolerance


def training_lines(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def validations(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("part") == "validation"]


def ask_to_stop(monkeypatch: pytest.MonkeyPatch, at_look: int) -> None:
    """Request a stop before the flag is read for the `at_look`-th time."""
    looks = iter(range(1, 10**6))
    reason = property(lambda _: "asked by a test" if next(looks) >= at_look else "")
    monkeypatch.setattr("hpcphotoz.training.run.signals.StopRequest.reason", reason)
