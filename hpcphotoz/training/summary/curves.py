"""The panels of a plot of runs: loss, sigma_MAD of validations, images a second, data wait."""

from collections.abc import Mapping
from pathlib import Path

from hpcphotoz.provenance import read_starts
from hpcphotoz.training.summary.metrics_lines import MetricsLines, Points
from hpcphotoz.training.summary.run_summary import best, read_config

_LOSSES = {"all": "loss", "clean": "loss_clean", "attacked": "loss_adversarial"}
_SCATTERS = {"clean": "sigma_mad", "attacked": "sigma_mad_adversarial"}
_EVENTS = {"skipped step": "skipped_step", "loss spike": "loss_spike"}
Curves = dict[str, dict[str, Points]]  # by run, by name


def panels(runs: Mapping[str, MetricsLines]) -> list[tuple[str, Curves]]:
    """Labels of the y axes with their curves; panels without a point are left out.

    Args:
        runs: the lines of each run by its name.
    """
    found: list[tuple[str, Curves]] = [
        ("loss (nats)", {run: _named(lines, _LOSSES) for run, lines in runs.items()}),
        (
            "validation sigma_MAD",
            {
                run: {name: lines.validation_curve(key) for name, key in _SCATTERS.items()}
                for run, lines in runs.items()
            },
        ),
        ("images/s", {run: _named(lines, {"all ranks": "images_per_s"}) for run, lines in runs.items()}),
        (
            "data wait (%)",
            {run: {"rank 0": _percent(lines.curve("data_wait"))} for run, lines in runs.items()},
        ),
    ]
    return [(label, curves) for label, curves in found if any(any(one.values()) for one in curves.values())]


def resumed_steps(run: Path) -> list[int]:
    """The steps from which a run was resumed."""
    return [int(start["step"]) for start in read_starts(run) if start.get("step")]


def best_step(run: Path, lines: MetricsLines) -> int | None:
    """The step of the validation that is best by `run.criterion`; None: there is none.

    Raises:
        BadInput: the folder holds no run.
    """
    found = best(lines, read_config(run))
    return found["step"] if found else None


def event_steps(lines: MetricsLines) -> dict[str, list[int]]:
    """The steps of skipped steps and of spikes of the loss, by what a legend calls them."""
    return {
        name: [line["step"] for line in lines.events if line.get("kind") == kind]
        for name, kind in _EVENTS.items()
    }


def _percent(curve: Points) -> Points:
    return [(step, 100 * value) for step, value in curve]


def _named(lines: MetricsLines, keys: Mapping[str, str]) -> dict[str, Points]:
    return {name: lines.curve(key) for name, key in keys.items()}
