"""Step, epoch, figures and expected end of a run that trains."""

from typing import Any

import pytest

from hpcphotoz.training.reporting.run_progress import RunProgress, validation_text

TRAINING: dict[str, Any] = {
    "step": 24,
    "epoch": 1,
    "loss": 2.5,
    "loss_clean": 2.0,
    "loss_adversarial": 3.0,
    "images_per_s": 1234.4,
    "data_wait": 0.0123,
}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_end_is_expected_at_the_pace_since_the_first_step() -> None:
    clock = Clock()
    progress = RunProgress("a", 10, 110, 20, 6, clock)
    assert progress.eta_s is None and progress.eta_text == "ETA unknown"
    clock.now += 500  # the first step, in which a network is compiled, is no measure
    progress.reach(11)
    assert progress.eta_s is None
    clock.now += 4
    progress.reach(13)
    assert progress.eta_s == pytest.approx(2 * 97)
    assert progress.eta_text == "ETA 0:03:14"
    progress.reach(12)  # fewer steps than before change nothing
    assert (progress.step, progress.step_text) == (13, "step 13 of 110")


@pytest.mark.parametrize(("step", "epoch"), [(0, 1), (1, 1), (20, 1), (21, 2), (120, 6)])
def test_the_epoch_is_that_of_the_last_step(step: int, epoch: int) -> None:
    assert RunProgress("a", step, 120, 20, 6).epoch_text == f"epoch {epoch} of 6"


def test_figures_are_those_of_the_latest_lines() -> None:
    progress = RunProgress("a", 0, 120, 20, 6)
    assert progress.training_text == progress.validation_text == ""
    progress.add(TRAINING)
    assert progress.step == 24
    figures = "loss 2.5000 (clean 2.0000, attacked 3.0000), 1,234 images/s, data wait 1.2 %"
    assert progress.training_text == figures
    progress.add({"step": 20, "epoch": 0, "part": "validation", "sigma_mad": 0.02})
    assert progress.validation_text == "validation of epoch 1: sigma_MAD 0.0200"
    last = {"step": 40, "epoch": 1, "part": "validation", "sigma_mad": 0.01}
    progress.add({**last, "sigma_mad_adversarial": 0.03})
    assert progress.validation_text == "validation of epoch 2: sigma_MAD 0.0100, under attack 0.0300"
    progress.add({"step": 41, "epoch": 1, "part": "checkpoint", "bytes": 3})
    assert progress.step == 41
    assert progress.training_text == figures and "epoch 2" in progress.validation_text


def test_a_run_without_attacks_has_one_loss() -> None:
    progress = RunProgress("a", 0, 120, 20, 6)
    progress.add({**TRAINING, "loss_adversarial": None})
    assert progress.training_text.startswith("loss 2.5000, ")


def test_skipped_steps_are_shown_also_where_no_loss_is_left() -> None:
    progress = RunProgress("a", 0, 120, 20, 6)
    nothing = {"loss": None, "loss_clean": None, "loss_adversarial": None}
    progress.add({**TRAINING, **nothing, "skipped_steps": 3})
    assert progress.training_text.startswith("loss none, 3 steps skipped, 1,234 images/s")


def test_the_line_of_a_validation_has_the_words_of_the_view() -> None:
    figures = {"epoch": 1, "n": 9, "bias": -0.001, "sigma_mad": 0.0213, "eta": 0.05}
    text = "validation of epoch 2: sigma_MAD 0.0213, bias -0.0010, eta 0.0500"
    assert validation_text(figures, "bias", "eta") == text
    attacked = {**figures, "bias_adversarial": 0.1, "sigma_mad_adversarial": 0.034}
    text = text.replace(", bias", ", under attack 0.0340, bias")
    assert validation_text(attacked, "bias", "eta") == text
