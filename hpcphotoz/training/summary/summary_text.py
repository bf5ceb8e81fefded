"""The summary of a run as lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpcphotoz.config.section import option_text
from hpcphotoz.output import number_of
from hpcphotoz.training.reporting.events import event_text
from hpcphotoz.training.summary.metrics_lines import MetricsLines, is_number
from hpcphotoz.training.summary.text_plot import text_plot

_ROWS = 8  # of a table, the last ones
_SHORT = 40  # characters of a reason that is said each time
_COLUMNS = ("epoch", "step", "n", "bias", "sigma_mad", "eta")
_ATTACKED = tuple(f"{name}_adversarial" for name in ("n", "bias", "sigma_mad", "eta"))


def summary_lines(facts: Mapping[str, Any], lines: MetricsLines, told: str | None = None) -> list[str]:
    """Lines for a terminal.

    Args:
        facts: of `summarise`.
        lines: the metrics of the run.
        told: why the run ended, if lines above say it: it is not said again.
    """
    return [
        *_options(facts),
        *_throughput(facts),
        "",
        *text_plot("loss (*) against the step", {"*": lines.curve("loss")}),
        *_validation_plot(lines),
        *_validations(facts),
        *_starts(facts["starts"], told),
        *_checkpoints(facts),
        *_faults(facts["faults"]),
    ]


def row(name: str, value: object) -> str:
    """A line with a name and its value."""
    return f"{name:16s} {value}"


def number(value: object, form: str = ".4f") -> str:
    """A number, or a dash where there is none."""
    return format(value, form) if is_number(value) else "-"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns as wide as their cells, two spaces apart."""
    wide = [max(len(one[k]) for one in (heads, *rows)) for k in range(len(heads))]
    lines = ("  ".join(c.rjust(w) for c, w in zip(one, wide, strict=True)) for one in (heads, *rows))
    return [line.rstrip() for line in lines]


def _options(facts: Mapping[str, Any]) -> Iterator[str]:
    versions = facts["versions"]
    made = f"hpcphotoz {versions['hpcphotoz']}, commit {versions['commit'] or 'unknown'}"
    yield row("version", f"{made}, torch {versions['torch']}, {facts['device']}")
    yield row("data", ", ".join(facts["datasets"]) or "unknown")
    beside = f"recipe {facts['recipe']}" if facts["recipe"] else "defaults"
    changed = facts["options"]
    yield row("options", f"{number_of(len(changed), 'option')} unlike those of the {beside}")
    for name, one in changed.items():
        yield row("", f"{name} = {option_text(one['value'])} ({option_text(one['reference'])})")


def _throughput(facts: Mapping[str, Any]) -> Iterator[str]:
    found = facts["throughput"]
    if found["images_per_s"] is None:
        yield row("progress", "no line of metrics yet")
        return
    yield row("progress", f"step {facts['step']}, loss {number((facts['loss'] or {}).get('last'))}")
    rate, wait = found["images_per_s"], found["data_wait"]
    yield row("images/s", ", ".join(f"{name} {rate[name]:,.0f}" for name in rate))
    if wait is not None:
        yield row("data wait", ", ".join(f"{name} {100 * wait[name]:.1f} %" for name in wait))
    if (found := facts["stragglers"]) is not None:
        rank, n = next(iter(found["lines_by_rank"].items()))
        of = f"{n} of {sum(found['lines_by_rank'].values())} lines"
        yield row(
            "slowest rank", f"{rank} in {of}; own work over the median rank's: {found['ratio']['median']:.2f}"
        )


def _validation_plot(lines: MetricsLines) -> list[str]:
    clean, attacked = (lines.validation_curve(f"sigma_mad{end}") for end in ("", "_adversarial"))
    if len(clean) < 2:
        return []
    title = "sigma_MAD of validations (o)" + (", under attack (x)" if attacked else "")
    return ["", *text_plot(title, {"o": clean, "x": attacked})]


def _validations(facts: Mapping[str, Any]) -> list[str]:
    found = facts["validations"]
    if not found:
        return []
    names = _COLUMNS + (_ATTACKED if any(_ATTACKED[0] in line for line in found) else ())
    rows = []
    for line in found[-_ROWS:]:
        cells = [
            number(line.get(name), "d" if name in ("step", "n", _ATTACKED[0]) else ".4f") for name in names
        ]
        rows.append([str(line["epoch"] + 1), *cells[1:]])
    heads = [name.replace("_adversarial", "*") for name in names]
    told = f"validations: the last {len(rows)} of {len(found)}" + (
        ", *: under attack" if len(names) > 6 else ""
    )
    lines = ["", told, *table(heads, rows)]
    if facts["best"]:
        at = f"epoch {facts['best']['epoch'] + 1}, step {facts['best']['step']}"
        lines.append(f"best by run.criterion {facts['criterion']}: {at}")
    return lines


def _starts(starts: Sequence[Mapping[str, Any]], told: str | None) -> list[str]:
    said = {told}
    shown = starts[-_ROWS:]
    more = "" if len(shown) == len(starts) else f", the last {len(shown)}"
    lines = ["", f"starts: {len(starts)}{more}"]
    for start in shown:
        end = start.get("end") or {}
        job = f", Slurm job {start['slurm_job']}" if start["slurm_job"] else ""
        where = f"{number_of(start['world_size'] or 1, 'rank')} on {start['host']}{job}"
        step = f" at step {end['step']}" if end.get("step") is not None else ""
        reason = end.get("reason") or ""
        again = len(reason) > _SHORT and reason in said
        why = ", for the reason above" if again else f": {reason}" if reason else ""
        said.add(reason)
        ended = f"{end['outcome']} {end['time']}{step}{why}" if end else "no end recorded"
        lines.append(f"  {start['time']} from step {start['step'] or 0}, {where}; {ended}")
    return lines


def _checkpoints(facts: Mapping[str, Any]) -> list[str]:
    files, saves = facts["checkpoints"], facts["saves"]
    if not files:
        return ["", "checkpoints: none"]
    blocked, total = (number(saves[f"median_{key}"], ".3f") for key in ("blocked_s", "total_s"))
    times = f"training stood still for {blocked} s, on the disk after {total} s (medians)"
    lines = ["", f"checkpoints: {number_of(saves['n'], 'save')}, {times}"]
    return [*lines, *(f"  {one['file']}  {one['bytes'] / 1e6:.1f} MB" for one in files)]


def _faults(faults: Mapping[str, Any]) -> list[str]:
    counts = dict(faults["events"])
    # A step that was skipped after the last line of training has an event alone.
    counts["skipped_step"] = max(counts.get("skipped_step", 0), faults["skipped_steps"])
    for key in ("skipped_object", "lost_object", "damaged_metrics_line"):
        counts[key] = faults[f"{key}s"]
    found = [number_of(n, kind.replace("_", " ")) for kind, n in counts.items() if n]
    if faults["lost_shards"]:
        found.append(f"lost shards {', '.join(faults['lost_shards'])}")
    other = "other " if faults["events"] else ""
    found += [number_of(n, other + level) + " logged" for level, n in faults["logged"].items()]
    lines = ["", f"faults: {', '.join(found) or 'none'}"]
    if earlier := sum(faults["events"].values()) - len(faults["last_events"]):
        lines.append(f"  ({number_of(earlier, 'earlier event')} not shown: see metrics.jsonl)")
    lines += [f"  {event_text(event)}" for event in faults["last_events"]]
    if earlier := faults["earlier_messages"]:
        lines.append(f"  ({number_of(earlier, 'earlier message')} not shown: see logs/rank-*.log)")
    for one in faults["messages"]:
        times = f" ({one['n']} times)" if one["n"] > 1 else ""
        lines.append(f"  {one['level']}: {one['message']}{times}")
    return lines
