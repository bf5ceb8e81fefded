"""Writes the report of an evaluation: a self-contained HTML page, its figures, and a JSON summary."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import atomic_write, check_output_folder
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.figure_folder import check_figure_folder, replacing_figures
from hpcphotoz.evaluation.report.page import TITLE, render_page
from hpcphotoz.evaluation.report.section import ReportSection, figure_files
from hpcphotoz.evaluation.report.summary import report_summary
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.output import number_of


def check_report_folder(out: Path) -> None:
    """Check that a report can be written to a folder; create nothing.

    Raises:
        BadInput: the folder cannot be made or written, is a dataset or a run, or holds a `report.html`,
            `metrics.json` or file in `figures` that no evaluation wrote.
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
    check_figure_folder(out)
    check_output_folder(out)


def write_report(
    result: EvaluationResult,
    out: Path,
    baseline: Mapping[str, Any] | None = None,
    sections: Sequence[ReportSection] = (),
) -> dict[str, Any]:
    """Write `report.html`, `metrics.json` and `figures/*.png` into a folder, when all are complete.

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
    # A local import: all else works without matplotlib.
    from hpcphotoz.evaluation.report.standard_sections import (
        describe_attacks,
        describe_calibrations,
        galaxy_sections,
        standard_sections,
    )

    check_report_folder(out)
    tree = report_summary(result, baseline, sections)
    footer = ", ".join(f"{name} {number}" for name, number in tree["versions"].items())
    shown = [*standard_sections(result, baseline), *sections, *galaxy_sections(result)]
    figures = figure_files(shown)
    lead = f"{_objects(result)} {describe_attacks(result)} {describe_calibrations(result)}"
    page = render_page(result.data.resolve().name, lead, shown, figures, footer)
    texts = {"report.html": page, "metrics.json": json.dumps(tree, indent=1, allow_nan=False) + "\n"}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for name, text in texts.items():
                temporary = stack.enter_context(atomic_write(out / name))
                temporary.write_text(text, encoding="utf-8")
            stack.enter_context(replacing_figures(out, [file for files in figures for file in files]))
    except OSError as error:
        raise BadInput(f"{out}: cannot write the report: {error.strerror}") from None
    return tree


def _objects(result: EvaluationResult) -> str:
    """Sentence that tells what was measured."""
    objects = number_of(result.objects, "galaxy", "galaxies")
    unlabelled = f", {result.unlabelled} of them without z_spec (attacked, but left out of the metrics)"
    return (
        f"{objects} of {result.data.resolve().name}{result.which} in {', '.join(result.header.bands)}"
        f"{unlabelled if result.unlabelled else ''}."
    )
