"""Looks of the report's lines: distinct for any colour vision, and without colours."""

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.cbook import is_math_text

from hpcphotoz.evaluation.report.figure import COLOURS, figure_png, legend_below, line_look, text_of
from tests.helpers.evaluation_results import make_result

# Machado, Oliveira & Fernandes 2009, doi:10.1109/TVCG.2009.113, severity 1; on linear RGB.
VISIONS = {
    "trichromacy": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, vision: str) -> npt.NDArray[np.float64]:
    """CIELAB (D65) of a colour as it looks to a colour vision."""
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(VISIONS[vision]) @ linear, 0, 1)
    t = TO_XYZ @ seen / TO_XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a: str, b: str, vision: str) -> float:
    return float(np.linalg.norm(lab(a, vision) - lab(b, vision)))


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_distinct_for_every_colour_vision(vision: str) -> None:
    # 2.3 is just noticeable; thin lines need several times that.
    assert min(distance(a, b, vision) for a, b in combinations(COLOURS, 2)) > 15
    assert min(distance(a, "#ffffff", vision) for a in COLOURS) > 25


def test_the_simulation_confuses_what_is_confused() -> None:
    orange, green = "#d95f02", "#7a8b00"
    assert distance(orange, green, "trichromacy") > 50 and distance(orange, green, "deuteranopia") < 15


@pytest.mark.parametrize("name", ["_old", r"cnn$\foo$", "$10", r"_$a$ and \$b"])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    shown: list[str] = []

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], label=text_of(name))
        ax.set(title=text_of(name), ylabel=f"{text_of(name)}\n$z_{{phot}}$")
        legend_below(figure, ax)
        shown.extend(text.get_text() for legend in figure.legends for text in legend.get_texts())

    assert figure_png(draw, 3, 3).startswith(b"\x89PNG")
    assert shown == [text_of(name)] and not is_math_text(shown[0])
    assert shown[0].replace("\\$", "$").strip() == name  # as matplotlib draws what is no formula


def test_lines_differ_without_colours_and_a_seventh_network_has_a_look_of_its_own() -> None:
    names = tuple(f"n{i}" for i in range(12))
    result = make_result(names, n=2)
    looks = [line_look(result, name) for name in names]
    assert len({(str(look["ls"]), look["marker"]) for look in looks[:6]}) == 6
    assert len({str(look) for look in looks}) == 12
