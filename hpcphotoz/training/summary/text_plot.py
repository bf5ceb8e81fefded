"""Small plots of characters, for a terminal or a log. ASCII only."""

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 60, 10  # characters of the plane


def text_plot(title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> list[str]:
    """Lines of text that show curves; in a column a curve has its mean there.

    Args:
        title: above the plot; the marks follow it.
        curves: by the mark of each, one character: its points, (step, value), of finite values. A later curve
            covers an earlier one.
    """
    all_points = [point for curve in curves.values() for point in curve]
    if not all_points:
        return []
    steps, values = zip(*all_points, strict=True)
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)
    plane = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, curve in curves.items():
        for column, value in _means(curve, first, last).items():
            row = 0 if high == low else round((high - value) / (high - low) * (HEIGHT - 1))
            plane[row][column] = mark
    labels = {0: _number(high)} | ({HEIGHT - 1: _number(low)} if low < high else {})
    wide = max(map(len, labels.values()))
    lines = [f"{labels.get(number, ''):>{wide}} |{''.join(row)}" for number, row in enumerate(plane)]
    axis = f"{'':{wide}} +{'-' * WIDTH}"
    end = f"{last:>{WIDTH - WIDTH // 2}}" if first < last else ""
    ends = f"{'':{wide}}  {first:<{WIDTH // 2}}{end}".rstrip()
    return [title, *(line.rstrip() for line in lines), axis, ends]


def _means(curve: Sequence[tuple[int, float]], first: int, last: int) -> dict[int, float]:
    """Mean value of a curve in each column that has points."""
    columns: dict[int, list[float]] = {}
    for step, value in curve:
        column = 0 if last == first else (step - first) * (WIDTH - 1) // (last - first)
        columns.setdefault(column, []).append(value)
    return {column: math.fsum(values) / len(values) for column, values in columns.items()}


def _number(value: float) -> str:
    return f"{value:.4g}"
