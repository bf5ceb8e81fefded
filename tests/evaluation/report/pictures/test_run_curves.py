"""The picture of runs: a line style has one meaning in all panels, and the legend explains every mark."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'hpcphotoz[report]'")

from matplotlib.figure import Figure

from hpcphotoz.config.load import configure, to_toml
from hpcphotoz.evaluation.report.pictures import run_curves
from hpcphotoz.evaluation.report.pictures.run_curves import Panel, Steps, plot_runs
from hpcphotoz.training.summary.curves import best_step, event_steps, panels
from hpcphotoz.training.summary.metrics_lines import MetricsLines

LOSS = {"loss": 2.0, "loss_clean": 1.0, "loss_adversarial": 3.0, "images_per_s": 100.0, "data_wait": 0.25}
LINES = MetricsLines(
    training=[{"step": step, "epoch": 0, **LOSS} for step in (10, 20)],
    validations=[{"step": 20, "epoch": 0, "sigma_mad": 0.02, "sigma_mad_adversarial": 0.03}],
    events=[{"step": step, "epoch": 0, "kind": "skipped_step"} for step in (3, 31)],
)


def drawn(monkeypatch: pytest.MonkeyPatch, steps: Steps) -> list[Any]:
    """The axes of the panels."""
    figure = Figure()

    def draw_only(draw: Callable[[Any], None], width: float, height: float) -> bytes:
        draw(figure)
        return b""

    monkeypatch.setattr(run_curves, "figure_png", draw_only)
    found = [Panel(label, curves) for label, curves in panels({"a": LINES})]
    plot_runs(found, {"a": steps}, Path("out.png"))
    return list(figure.axes)


@pytest.fixture(autouse=True)
def no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_curves, "atomic_write", lambda out: nullcontext(tmp_path / "out.png"))


def test_a_style_has_one_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    styles: dict[str, set[str]] = {}
    axes = drawn(monkeypatch, Steps())
    for ax in axes:
        for line in ax.get_lines():
            styles.setdefault(line.get_label(), set()).add(line.get_linestyle())
    assert styles["a: clean"] == {"--"} and styles["a: attacked"] == {":"} and styles["a: all"] == {"-"}
    labels = [ax.get_ylabel() for ax in axes]
    assert labels == ["loss (nats)", "validation sigma_MAD", "images/s", "data wait (%)"]
    assert list(axes[3].get_lines()[0].get_ydata()) == [25.0, 25.0]
    assert axes[2].get_ylim()[0] == axes[3].get_ylim()[0] == 0


def test_resumes_and_events_are_in_the_legend_once(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(monkeypatch, Steps(resumed=[5, 15], events=event_steps(LINES)))
    first, *others = [ax.get_legend_handles_labels()[1] for ax in axes]
    assert first == ["a: all", "a: clean", "a: attacked", "a: resumed", "a: skipped step"]
    assert not any("resumed" in label or "skipped" in label for labels in others for label in labels)
    assert axes[0].get_xlim()[0] < 3 and axes[0].get_xlim()[1] > 31


def test_the_best_epoch_is_a_star_on_each_curve_of_the_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(monkeypatch, Steps(best=20))
    stars = {ax.get_ylabel(): [line for line in ax.get_lines() if line.get_marker() == "*"] for ax in axes}
    assert [label for label, found in stars.items() if found] == ["validation sigma_MAD"]
    (star,) = stars["validation sigma_MAD"]
    assert list(star.get_xdata()) == [20, 20] and list(star.get_ydata()) == [0.02, 0.03]
    assert "a: best epoch" in axes[1].get_legend_handles_labels()[1]
    for none in (Steps(), Steps(best=10)):  # nothing was validated, or the line of it is gone
        assert all(line.get_marker() != "*" for ax in drawn(monkeypatch, none) for line in ax.get_lines())


@pytest.mark.parametrize(("criterion", "step"), [("clean", 20), ("robust", 30)])
def test_the_best_epoch_is_that_of_the_criterion(tmp_path: Path, criterion: str, step: int) -> None:
    for_run = {"sigma_mad": 0.9, "sigma_mad_adversarial": 0.9}
    scatters = {10: {}, 20: {"sigma_mad": 0.1}, 30: {"sigma_mad_adversarial": 0.1}}
    lines = MetricsLines(
        validations=[{"step": at, "epoch": 0, **for_run, **better} for at, better in scatters.items()]
    )
    made = configure("test", fraction=0.5, criterion=criterion)
    (tmp_path / "config.toml").write_text(to_toml(made))
    (tmp_path / "provenance.json").write_text(json.dumps({"starts": [{"step": 0}]}))
    assert best_step(tmp_path, lines) == step and best_step(tmp_path, MetricsLines()) is None
