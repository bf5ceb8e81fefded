"""Writes the report of an evaluation: a self-contained HTML page and a JSON summary."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import check_output_folder, write_text
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.page import TITLE, render_page
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.report.summary import report_summary
from hpcphotoz.evaluation.result import EvaluationResult


def check_report_folder(out: Path) -> None:
    """Check that a report can be written to a folder; create nothing.

    Raises:
        BadInput: the folder cannot be made or written, is a dataset or a run, or holds a `report.html` or
            `metrics.json` that no evaluation wrote.
    """
    for name, what in (("manifest.json", "a dataset"), ("checkpoints", "a run")):
        if (out / name).exists():
            raise BadInput(f"{out}: is {what}: choose another folder for the report")
    for name, mark in (("report.html", f"<title>{TITLE}"), ("metrics.json", '"robustness_curves"')):
        path = out / name
        try:
            ours = not path.exists() or mark in path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # a folder, or a file that may not be read
            ours = False
        if not ours:
            raise BadInput(
                f"{path}: exists and was not written by an evaluation: choose another folder for the report"
            )
    check_output_folder(out)


def write_report(
    result: EvaluationResult,
    out: Path,
    baseline: Mapping[str, float] | None = None,
    sections: Sequence[ReportSection] = (),
) -> dict[str, Any]:
    """Write `report.html` and `metrics.json` into a folder, each under its name only when complete.

    Args:
        result: from `evaluate`.
        out: folder; created if it does not exist.
        baseline: metrics from `knn_colours`, shown beside the networks.
        sections: further measurements.

    Returns:
        The content of `metrics.json`.

    Raises:
        BadInput: matplotlib is not installed, or `check_report_folder` refuses the folder.
    """
    check_report_folder(out)
    tree = report_summary(result, baseline, sections)
    footer = ", ".join(f"{name} {number}" for name, number in tree["versions"].items())
    text = render_page(result, baseline, footer, sections)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "report.html", text)
        write_text(out / "metrics.json", json.dumps(tree, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise BadInput(f"{out}: cannot write the report: {error.strerror}") from None
    return tree
