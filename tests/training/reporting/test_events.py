"""The text of an event, of which a later or earlier version may lack figures."""

from typing import Any

import pytest

from hpcphotoz.training.reporting.events import event_text


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"kind": "skipped_step"}, "step 7 is skipped: the loss or gradient is not finite"),
        (
            {"kind": "skipped_step", "reason": "loss", "objects": 1, "object_ids": [4], "ranks": [0]},
            "step 7 is skipped: the loss of object 4 is not finite",
        ),
        (
            {"kind": "skipped_step", "reason": "loss", "objects": 12},
            "step 7 is skipped: the loss of 12 objects is not finite",
        ),
        (
            {"kind": "loss_spike", "step_loss": 7.0, "median_loss": 1.0, "limit": 2.0},
            "step 7: the loss is 7: the median of the steps before is 1",
        ),
        ({"kind": "new_kind", "a_figure": 3, "none": None, "empty": []}, "step 7: new kind: a figure 3"),
        ({}, "step 7: unknown event"),
    ],
)
def test_an_event_in_words(event: dict[str, Any], text: str) -> None:
    assert event_text({"step": 7, "epoch": 0, "part": "event", **event}) == text
