"""Writes the report of an evaluation: a self-contained HTML page, its figures, and a JSON summary."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.folder import PAGE, SUMMARY, check_report_folder, replace_report
from hpcphotoz.evaluation.report.page import render_page
from hpcphotoz.evaluation.report.section import ReportSection, figure_files
from hpcphotoz.evaluation.report.summary import report_summary
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.output import number_of


def write_report(
    result: EvaluationResult,
    out: Path,
    baseline: Mapping[str, Any] | None = None,
    sections: Sequence[ReportSection] = (),
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `report.html`, `metrics.json` and `figures/*.png` into a folder, when all are complete.

    They replace an earlier report as a whole: see `folder`.

    Args:
        result: from `evaluate`.
        out: folder; created if it does not exist.
        baseline: metrics from `knn_colours`, shown beside the networks.
        sections: further measurements.
        files: texts of further files, by name, such as `certified_radii.csv`.

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
    summary = json.dumps(tree, indent=1, allow_nan=False) + "\n"
    texts = {PAGE: page, SUMMARY: summary, **(files or {})}
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_report(out, texts, [file for of_section in figures for file in of_section])
    except OSError as error:
        raise BadInput(f"{out}: cannot write the report: {error.strerror}") from None
    return tree


def _objects(result: EvaluationResult) -> str:
    """Sentence that tells what was measured."""
    objects = number_of(result.objects, "galaxy", "galaxies")
    text = f"{objects} of {result.data.resolve().name}{result.which} in {', '.join(result.header.bands)}."
    instead = "attacked away from the most probable redshift of its own clean PDF"
    if result.unlabelled == result.objects:
        return f"{text} No z_spec is known: there are no metrics, and each galaxy is {instead}."
    if result.unlabelled:
        return f"{text} {result.unlabelled} without z_spec: each is {instead}, and left out of the metrics."
    return text
