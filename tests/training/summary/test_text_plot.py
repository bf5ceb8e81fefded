"""Plots of characters: the highest point is on top, columns have means, all of it is ASCII."""

import pytest

from hpcphotoz.training.summary.text_plot import HEIGHT, WIDTH, text_plot


def plane(lines: list[str]) -> list[str]:
    return [line.partition("|")[2].ljust(WIDTH) for line in lines[1 : 1 + HEIGHT]]


def test_a_falling_curve_falls() -> None:
    lines = text_plot("loss", {"*": [(step, 5.0 - step / 100) for step in range(101)]})
    rows = plane(lines)
    assert rows[0][0] == "*" and rows[-1][-1] == "*"
    of_column = ["".join(row[k] for row in rows).index("*") for k in range(WIDTH)]
    assert of_column == sorted(of_column)
    assert lines[0] == "loss" and lines[1].startswith("5 |") and lines[HEIGHT].startswith("4 |")
    assert lines[-1].split() == ["0", "100"] and max(map(len, lines)) <= 80
    assert all(line.isascii() for line in lines)


def test_a_column_has_the_mean_of_its_points() -> None:
    """Of two points in one column, 0 and 4, the mark is where 2 is."""
    rows = plane(text_plot("", {"*": [(0, 0.0), (1, 4.0), (1000, 2.0)], ".": [(500, 0.0), (501, 4.0)]}))
    assert sum(row.count("*") for row in rows) == 2
    assert [row[0] for row in rows].index("*") == [row[-1] for row in rows].index("*")


@pytest.mark.parametrize("curve", [[(7, 1.5)], [(7, 1.5), (9, 1.5)]])
def test_constant_curves_are_drawn(curve: list[tuple[int, float]]) -> None:
    lines = text_plot("", {"*": curve})
    assert plane(lines)[0].count("*") == len(curve)
    assert "".join(lines).count("1.5") == 1 and lines[-1].split() == [str(step) for step, _ in curve]


def test_without_points_there_is_no_plot() -> None:
    assert text_plot("loss", {"*": []}) == []
