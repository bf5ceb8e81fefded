"""Fixtures of the tests of reports."""

import io

import numpy as np
import pytest
from matplotlib import image

from hpcphotoz.evaluation.report.plots import galaxy, redshifts, robustness


@pytest.fixture
def quick_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty pictures: drawing takes most of a report's time, and only some tests look at pictures."""
    target = io.BytesIO()
    image.imsave(target, np.zeros((8, 8)), format="png")
    for module in (redshifts, robustness, galaxy):
        monkeypatch.setattr(module, "figure_png", lambda draw, width, height: target.getvalue())
