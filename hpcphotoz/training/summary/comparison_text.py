"""The difference of two runs as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpcphotoz.config.section import option_text
from hpcphotoz.training.summary.comparison import differs
from hpcphotoz.training.summary.metrics_lines import MetricsLines
from hpcphotoz.training.summary.summary_text import number, row, table
from hpcphotoz.training.summary.text_plot import text_plot

_WHOLE = ("epoch", "step", "n", "n_adversarial")


def comparison_lines(facts: Mapping[str, Any], lines: Sequence[MetricsLines]) -> list[str]:
    """Lines for a terminal.

    Args:
        facts: of `compare`.
        lines: the metrics of both runs.
    """
    one, other = lines
    plot = text_plot(
        "loss (a, b; b covers a) against the step", {"a": one.curve("loss"), "b": other.curve("loss")}
    )
    return [
        row("a", facts["runs"][0]),
        row("b", facts["runs"][1]),
        *_settings(facts),
        "",
        *plot,
        *_loss(facts["loss"]),
        *_validation(facts["validation"]),
        *_throughput(facts["throughput"]),
        *_weights(facts["weights"]),
    ]


def _settings(facts: Mapping[str, Any]) -> list[str]:
    lines = ["", row("options", "the same" if not facts["options"] else "a, then b")]
    options = {name: ", ".join(map(option_text, pair)) for name, pair in facts["options"].items()}
    lines += [row("", f"{name} = {values}") for name, values in options.items()]
    data = facts["data"]
    lines.append(row("data", "the same" if data["same"] else "another manifest, a, then b"))
    if not data["same"]:
        for folders, sha256 in zip(data["datasets"], data["manifest_sha256"], strict=True):
            lines.append(row("", f"{', '.join(folders) or 'unknown'} ({(sha256 or 'unknown')[:16]})"))
    lines.append(row("versions", "the same" if not facts["versions"] else "a, then b"))
    lines += [row("", f"{name} {a}, {b}") for name, (a, b) in facts["versions"].items()]
    a, b = facts["world_size"]
    return [*lines, row("ranks", a if a == b else f"{a}, {b}")]


def _loss(found: Mapping[str, Any]) -> list[str]:
    if not found["steps"]:
        return ["loss: no step that both have"]
    at = f"at {len(found['steps'])} equal steps"
    if found["first_different_step"] is None:
        return [f"loss: the same {at}, bit for bit"]
    a, b = found["values"][found["steps"].index(found["at_step"])]
    most = f"greatest difference {found['max_difference']:.4g} at step {found['at_step']} ({a:.6g}, {b:.6g})"
    return [f"loss: {at}, first different at step {found['first_different_step']}, {most}"]


def _validation(found: Mapping[str, Sequence[Any]]) -> list[str]:
    if not found:
        return ["", "validations: none"]
    rows = []
    for name, (a, b) in found.items():
        if name == "epoch":  # counted from 1 for people
            a, b = (None if value is None else value + 1 for value in (a, b))
        form = "d" if name in _WHOLE else ".4f"
        rows.append([name, number(a, form), number(b, form), "" if name in _WHOLE else differs(a, b)])
    return ["", *table(["last validation", "a", "b", "b - a"], rows)]


def _throughput(found: Mapping[str, Any]) -> list[str]:
    a, b = (number(rate, ",.0f") for rate in found["images_per_s"])
    waits = ", ".join("-" if wait is None else f"{100 * wait:.1f} %" for wait in found["data_wait"])
    ratio = number(found["ratio"], ".2f")
    return ["", f"images/s, median: {a}, {b}; b / a = {ratio}; data wait, median: {waits}"]


def _weights(found: Mapping[str, Any]) -> list[str]:
    if found["reason"]:
        return [f"weights: not compared: {found['reason']}"]
    a, b = found["steps"]
    steps = f"step {a}" if a == b else f"steps {a}, {b}"
    where = f" ({found['tensor']})" if found["max_difference"] else ""
    return [f"weights at {steps}: greatest difference {found['max_difference']:.4g}{where}"]
