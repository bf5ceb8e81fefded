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
_HEADS = {
    key: key.replace("sigma_mad", "sigma").replace("_adversarial", "*") for key in (*_FIGURES, *_ATTACKED)
}
_SORTED_BY = {"clean": "sigma", "robust": "sigma*", "weighted": "the weighted mean of sigma and sigma*"}
_WIDTH = 80  # characters of a terminal
_LEFT_OUT = ("images/s", "loss")  # of a wider table, in this order
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
    """The lines of a table for a terminal of 80 columns, if that is possible, and what it is sorted by.

    Columns that no run has are left out. So are the names of runs which only repeat the values of their
    options, and in a table too wide those of `_LEFT_OUT`.
    """
    figures = [key for key in (*_FIGURES, *_ATTACKED) if any(is_number(one[key]) for one in facts)]
    columns, notes = _columns(facts, figures), []
    for head in _LEFT_OUT:
        if _width(columns) > _WIDTH and head in columns:
            del columns[head]
            notes.append(head)
    lines = table(list(columns), list(zip(*columns.values(), strict=True)))
    left = [f"{', '.join(notes)}: with --json"] if notes else []
    if not figures:
        return [*lines, "no validation yet", *left]
    criteria = sorted({str(one["criterion"]) for one in facts if one["criterion"]})
    by = ", ".join(f"{_SORTED_BY[name]} (run.criterion {name})" for name in criteria)
    attacked = "; *: under attack" if any(key in _ATTACKED for key in figures) else ""
    return [*lines, f"best first by {by}", f"figures of each run's best validation{attacked}", *left]


def _columns(facts: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> dict[str, list[str]]:
    """The cells of each column, by its head."""
    keys = list(facts[0]["values"]) if facts else []
    short = [key.rpartition(".")[2] for key in keys]
    taken = ["run", "state", "step", "loss", "images/s", *_HEADS.values()]
    heads = [
        key if short.count(name) > 1 or name in taken else name for key, name in zip(keys, short, strict=True)
    ]
    options = {
        head: [_text(one["values"][key]) for one in facts] for head, key in zip(heads, keys, strict=True)
    }
    told = [
        "_".join(f"{name}={one[k]}" for name, one in zip(short, options.values(), strict=True))
        for k in range(len(facts))
    ]
    names = [str(one["run"]) for one in facts]
    return {
        **({} if keys and names == told else {"run": names}),
        **options,
        "state": [str(one["state"]) for one in facts],
        "step": [number(one["step"], "d") for one in facts],
        "loss": [number(one["loss"]) for one in facts],
        **{_HEADS[key]: [number(one[key]) for one in facts] for key in figures},
        "images/s": [number(one["images_per_s"], ".0f") for one in facts],
    }


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(max(map(len, (head, *cells))) + 2 for head, cells in columns.items()) - 2


def _text(value: object) -> str:
    return "-" if value is None else value if isinstance(value, str) else option_text(value)
