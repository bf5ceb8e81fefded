"""One line of figures for each of many runs, best first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcphotoz.config.section import option_text
from hpcphotoz.training.saving.criterion import score
from hpcphotoz.training.summary.metrics_lines import MetricsLines, is_number, of_run
from hpcphotoz.training.summary.run_summary import best, flat, is_run, read_config
from hpcphotoz.training.summary.summary_text import number, table

# Figures of the best validation, as metrics.jsonl has them.
_FIGURES = ("bias", "sigma_mad", "eta")
_ATTACKED = tuple(f"{name}_adversarial" for name in _FIGURES)
_LIMITS = ("run.max_steps", "run.wall_minutes")  # of one start: not what runs are compared by


def run_facts(name: str, run: Path, state: str, values: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The figures of one run, as JSON knows them; those that it does not have are None.

    Args:
        name: by which the table calls it.
        run: its folder, which may not exist yet.
        state: such as "finished" or "pending".
        values: of the options of a sweep, as text; None: those of all options, of the run itself.
    """
    begun = is_run(run)
    config, lines = (read_config(run) if begun else None), MetricsLines.read(run)
    found = (best(lines, config) if config else None) or {}
    rates = of_run(lines.curve("images_per_s"))
    losses = lines.curve("loss")
    return {
        "run": name,
        "state": state,
        "values": dict(values) if values is not None else flat(config) if config else {},
        "step": max((line["step"] for line in lines.training), default=None),
        "loss": losses[-1][1] if losses else None,
        "criterion": config.run.criterion if config else None,
        "score": score(found, config) if found and config else None,
        "best_step": found.get("step"),
        **{key: found.get(key) for key in (*_FIGURES, *_ATTACKED)},
        "images_per_s": rates["median"] if rates else None,
    }


def run_table(facts: Sequence[dict[str, Any]], keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Facts of runs sorted by their score, those without one last.

    Args:
        facts: of `run_facts`.
        keys: options to show; None: those that differ among the runs that have begun.
    """
    if keys is None:
        known = [one["values"] for one in facts if one["values"]]
        names = dict.fromkeys(name for values in known for name in values)
        differing = (name for name in names if len({str(values.get(name)) for values in known}) > 1)
        keys = [name for name in differing if name not in _LIMITS]
    chosen = [{**one, "values": {key: one["values"].get(key) for key in keys}} for one in facts]
    return sorted(chosen, key=lambda one: (one["score"] is None, one["score"] or 0.0))


def table_lines(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table for a terminal; columns that no run has are left out."""
    keys = list(facts[0]["values"]) if facts else []
    figures = [key for key in (*_FIGURES, *_ATTACKED) if any(is_number(one[key]) for one in facts)]
    heads = ["run", *keys, "state", "step", "loss", *figures, "images/s"]
    rows = [
        [
            str(one["run"]),
            *(_text(one["values"][key]) for key in keys),
            str(one["state"]),
            number(one["step"], "d"),
            number(one["loss"]),
            *(number(one[key]) for key in figures),
            number(one["images_per_s"], ".0f"),
        ]
        for one in facts
    ]
    criteria = sorted({str(one["criterion"]) for one in facts if one["criterion"]})
    told = f"best first by run.criterion {', '.join(criteria)}; figures of each run's best validation"
    return [*table(heads, rows), *([told] if figures else ["no validation yet"])]


def _text(value: object) -> str:
    return "-" if value is None else value if isinstance(value, str) else option_text(value)
