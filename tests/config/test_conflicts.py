"""Options of different sections that contradict each other are refused."""

from typing import Any

import pytest

from hpcphotoz.config.load import configure
from hpcphotoz.errors import BadInput


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "append"}, "wants an adversarial.fraction above 0"),
        ({"method": "square", "fraction": 0.5}, "attack.method square: takes thousands of passes"),
        ({"method": "square", "validation_objects": 8}, "for evaluation: want fgsm, pgd or apgd"),
        ({"mode": "ranks"}, "attackers would have nothing to do"),
        (
            {"objective": "free", "mode": "streams", "fraction": 0.5},
            "want overlap.mode off",
        ),
        ({"objective": "free", "fraction": 0.5, "method": "fgsm"}, "want pgd"),
        (
            {"mode": "ranks", "graphs": "step", "fraction": 0.5},
            "captures would wait for ranks",
        ),
        (
            {"max_staleness": 1},
            "has an effect only with mode ranks",
        ),
        (
            {"objective": "free", "fraction": 0.5, "loss": "margin"},
            "has no attack.loss of its own",
        ),
        ({"deterministic": True, "compiled": "on"}, "chooses kernels by their time"),
        (
            {"deterministic": True, "mode": "ranks", "max_staleness": 1, "fraction": 0.5},
            "would have newer weights: want max_staleness 0",
        ),
        ({"attackers": "some"}, "want auto, or the number of ranks that attack"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        configure("test", **options)
