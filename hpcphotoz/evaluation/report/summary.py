"""The content of `metrics.json`, and the tables that the terminal and the page show."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.metrics import OUTLIER
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.result import CLEAN, EvaluationResult
from hpcphotoz.evaluation.scores import BISECTIONS
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from hpcphotoz.output import number_of
from hpcphotoz.provenance import commit

BASELINE, BASELINE_NAME = "knn_colours", "kNN colours"  # its key, and what tables call it
_PACKAGES = ("hpcphotoz", "torch", "numpy", "h5py", "matplotlib")
_RESERVED = (BASELINE, "robustness_curves", "transfer", "data", "attack", "versions")


def report_summary(
    result: EvaluationResult,
    baseline: Mapping[str, Any] | None = None,
    sections: Sequence[ReportSection] = (),
) -> dict[str, Any]:
    """Build the content of `metrics.json`.

    Each run's name is a key; docs/reference/metrics-json.md lists the others, with units.

    Args:
        result: from `evaluate`.
        baseline: metrics from `knn_colours`; None: no baseline.
        sections: further measurements.

    Raises:
        BadInput: a run whose name is one of the other keys.
    """
    tree: dict[str, Any] = {}
    check_run_names([network.name for network in result.networks], [one.key for one in sections])
    for network in result.networks:
        tree[network.name] = {
            CLEAN: network.clean.as_summary(),
            **{method: network.at(method, result.headline_eps).as_summary() for method in result.methods},
            "step": network.step,
            "calibration": _calibration(result.calibrations.get(network.name)),
        }
        if network.minimal_eps is not None:
            tree[network.name]["minimal_eps"] = network.minimal_eps.as_summary()
    if baseline:
        tree[BASELINE] = dict(baseline)
    tree["robustness_curves"] = {
        network.name: {
            method: [condition.as_summary() for condition in network.curve(method)]
            for method in result.methods
        }
        for network in result.networks
    }
    tree["transfer"] = {
        source: {name: one.as_summary() for name, one in targets.items()}
        for source, targets in result.transfer.items()
    }
    tree["data"] = {
        "name": result.data.resolve().name,
        "subset": {**result.subset.record(), "limit": result.limit},
        "objects": result.objects,
        "unlabelled": result.unlabelled,
        "bands": list(result.header.bands),
        "stamp": result.header.stamp,
        "pixel_scale_arcsec": result.header.pixel_scale,
    }
    tree["attack"] = {
        "methods": list(result.methods),
        "by_method": {
            name: METHODS[name].options(result.steps, result.restarts, result.queries)
            for name in result.methods
        },
        "headline_method": result.headline_method,
        "eps_sky_sigma": list(result.eps),
        "headline_eps_sky_sigma": result.headline_eps,
        "pgd_steps": result.steps,
        "loss": result.loss,
        "seed": result.seed,
        "gradient_precision": result.precision,
        "outlier_threshold": OUTLIER,
    }
    if any(network.minimal_eps for network in result.networks):
        tree["attack"]["minimal_eps"] = {
            **METHODS["pgd"].options(result.steps, restarts=1),
            "loss": "shift",
            "bisections": BISECTIONS,
        }
    tree["versions"] = _versions()
    return {**tree, **{one.key: one.record for one in sections}}


def _calibration(of: Calibration | None) -> dict[str, Any] | None:
    return None if of is None else {"temperature": of.temperature, "pit": list(of.pit)}


def check_run_names(names: Sequence[str], keys: Sequence[str] = ()) -> None:
    """Raise BadInput for a run whose name is another key of the summary.

    Args:
        names: the runs' names.
        keys: those of further measurements.
    """
    for name in names:
        if name in (*_RESERVED, *keys):
            raise BadInput(f"run '{name}': its name is a key of the summary: rename the run folder")


def print_table(result: EvaluationResult, baseline: Mapping[str, Any] | None = None) -> None:
    """Print the metrics, clean and at the headline epsilon, and the minimal epsilons, to standard output."""
    galaxies = number_of(result.objects, "galaxy", "galaxies")
    unknown = f", {result.unlabelled} with no z_spec" if result.unlabelled else ""
    _print(f"{galaxies} of {result.data}{result.which}{unknown}", metrics_rows(result, baseline), 2)
    if rows := minimal_eps_rows(result):
        title = "minimal epsilon (sky sigmas) that makes a fraction of the galaxies outliers"
        _print(title, rows, 1)


def _print(title: str, rows: list[list[str]], text_columns: int) -> None:
    """Print a table whose first row is the head; columns after the first `text_columns` are numbers."""
    table = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)  # fits 80 columns
    for i, name in enumerate(rows[0]):
        left = i < text_columns
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for row in rows[1:]:
        table.add_row(*row)
    Console(markup=False, emoji=False).print(table)  # a run "cnn[eps=0.1]" was shown as "cnn"


def metrics_rows(result: EvaluationResult, baseline: Mapping[str, Any] | None) -> list[list[str]]:
    """Table of metrics, clean and at the headline epsilon, its head first."""
    rows = [["run", "attack", "eps", "bias", "sigma_MAD", "eta", "CRPS", "|d<z>|"]]
    for network in result.networks:
        conditions = [network.clean, *(network.at(method, result.headline_eps) for method in result.methods)]
        for c in conditions:
            rows.append([network.name, c.method, f"{c.eps:g}", *_cells(c.metrics), f"{c.shift_median:.4f}"])
    if baseline:
        rows.append([BASELINE_NAME, CLEAN, "0", *_cells(baseline), ""])
    return rows


def minimal_eps_rows(result: EvaluationResult) -> list[list[str]]:
    """Table of the minimal epsilons, its head first; empty if they were not searched for."""
    measured = [(n.name, n.minimal_eps) for n in result.networks if n.minimal_eps is not None]
    if not measured:
        return []
    max_eps = f"{measured[0][1].max_eps:g}"
    rows = [["run", "outliers clean", "16 %", "50 %", "84 %", f"no outliers at {max_eps}"]]
    for name, one in measured:
        fractions = [one.as_summary()[key] for key in ("already_outliers", "not_reached")]
        ends = ["no z_spec" if fraction is None else f"{100 * fraction:.1f} %" for fraction in fractions]
        found = [one.quantile(q) for q in (0.16, 0.5, 0.84)]
        middle = ["" if math.isnan(e) else f"> {max_eps}" if math.isinf(e) else f"{e:.4f}" for e in found]
        rows.append([name, ends[0], *middle, ends[1]])
    return rows


def _cells(m: Mapping[str, Any]) -> list[str]:
    if not m:
        return ["-"] * 4
    return [f"{m['bias']:+.4f}", f"{m['sigma_mad']:.4f}", f"{100 * m['eta']:.1f} %", f"{m['crps']:.4f}"]


def _versions() -> dict[str, str]:
    found = {"commit": commit() or "unknown"}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
