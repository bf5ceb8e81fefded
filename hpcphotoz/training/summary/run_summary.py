"""What a run folder tells of its run: options, starts, curves, throughput, faults and checkpoints."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hpcphotoz.config import Config
from hpcphotoz.config import load as configuration
from hpcphotoz.errors import BadInput
from hpcphotoz.provenance import datasets_of, read_starts
from hpcphotoz.training.reporting.events import event_text
from hpcphotoz.training.run.checkpoint import BEST, KEPT, NEWEST, in_folder, step_of
from hpcphotoz.training.saving.criterion import score
from hpcphotoz.training.summary.metrics_lines import MetricsLines, is_number, of_run

# A line of logs/rank-N.log: time, level, module, message.
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \S+) (WARNING|ERROR|CRITICAL) [\w.]+: (.*)")
_MESSAGES = 10  # of the logs, that a summary lists
_EVENTS = 5  # that a summary lists
_VERSIONS = ("hpcphotoz", "commit", "python", "torch", "numpy", "h5py", "triton")


def is_run(folder: Path) -> bool:
    """Whether a training has begun in a folder."""
    return (folder / "config.toml").is_file() and bool(read_starts(folder))


def read_config(run: Path) -> Config:
    """The options of a run.

    Raises:
        BadInput: the folder holds no run.
    """
    if not is_run(run):
        raise BadInput(f"{run}: not a run folder: give one that `hpcphotoz train --out` has filled")
    return configuration.load(str(run / "config.toml"), convert=True)


def summarise(run: Path) -> dict[str, Any]:
    """The facts of a run, as JSON knows them.

    Args:
        run: run folder; a training may go on in it.

    Raises:
        BadInput: it holds no run.
    """
    config, starts, lines = read_config(run), read_starts(run), MetricsLines.read(run)
    recipe = _recipe(starts)
    last = starts[-1]
    return {
        "run": str(run),
        "recipe": recipe,
        "options": changed_options(config, configuration.load(recipe) if recipe else Config()),
        "datasets": datasets_of(run),
        "manifest_sha256": last.get("manifest_sha256"),
        "versions": versions(last),
        "device": last.get("device"),
        "step": max((line["step"] for line in lines.training), default=None),
        "epochs": config.run.epochs,
        "starts": [_start(start) for start in starts],
        "throughput": {key: of_run(lines.curve(key)) for key in ("images_per_s", "data_wait", "rank_wait")},
        "stragglers": _stragglers(lines),
        "loss": of_run(lines.curve("loss")),
        "validations": lines.validations,
        "criterion": config.run.criterion,
        "best": best(lines, config),
        "checkpoints": _checkpoints(run),
        "saves": _saves(lines),
        "faults": _faults(run, last, lines),
    }


def changed_options(config: Config, reference: Config) -> dict[str, dict[str, Any]]:
    """The options of a run that differ from those of another configuration: `value` and `reference`."""
    ours, theirs = flat(config), flat(reference)
    return {
        name: {"value": value, "reference": theirs[name]}
        for name, value in ours.items()
        if value != theirs[name]
    }


def flat(config: Config) -> dict[str, Any]:
    """Every option by its `section.key`."""
    return {f"{s}.{k}": value for s, values in config.model_dump().items() for k, value in values.items()}


def versions(start: dict[str, Any]) -> dict[str, str | None]:
    """Versions of the code and of the packages that a start has recorded."""
    return {name: start.get(name) for name in _VERSIONS}


def best(lines: MetricsLines, config: Config) -> dict[str, Any] | None:
    """The validation line with the least `run.criterion`; None: there is none."""
    scored = [(found, line) for line in lines.validations if (found := score(line, config)) is not None]
    return dict(min(scored, key=lambda one: one[0])[1]) if scored else None


def _recipe(starts: Sequence[dict[str, Any]]) -> str | None:
    """The recipe that the first start names after `train`; None: a file, or a call from Python."""
    words = [str(word) for word in starts[0].get("command") or ()]
    after = words[words.index("train") + 1 :] if "train" in words else []  # a dataset may have this name too
    return after[0] if after and after[0] in configuration.recipes() else None


def _start(start: dict[str, Any]) -> dict[str, Any]:
    keys = ("time", "host", "world_size", "launcher", "slurm_job", "step", "device", "commit", "end")
    return {key: start.get(key) for key in keys}


def _checkpoints(run: Path) -> list[dict[str, Any]]:
    """Checkpoint files with their sizes; one that is removed meanwhile is left out."""
    found = []
    for folder in (NEWEST, BEST, KEPT):
        for path in in_folder(run / folder):
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            found.append({"file": str(path.relative_to(run)), "step": step_of(path), "bytes": size})
    return found


def _saves(lines: MetricsLines) -> dict[str, Any]:
    """Number of saves, and the median seconds of each."""
    figures: dict[str, Any] = {"n": len(lines.saves)}
    for key in ("blocked_s", "total_s"):
        values = [float(line[key]) for line in lines.saves if is_number(line.get(key))]
        figures[f"median_{key}"] = median(values) if values else None
    return figures


def _stragglers(lines: MetricsLines) -> dict[str, Any] | None:
    """Which rank was the slowest in how many lines, and by what ratio; None: one rank, or not told."""
    slowest = Counter(
        str(line["slowest_rank"]) for line in lines.training if is_number(line.get("slowest_rank"))
    )
    ratio = of_run(lines.curve("straggler_ratio"))
    return {"lines_by_rank": dict(slowest.most_common()), "ratio": ratio} if slowest and ratio else None


def _faults(run: Path, start: dict[str, Any], lines: MetricsLines) -> dict[str, Any]:
    """What went wrong and was met: events, objects left out, steps skipped, other warnings of the logs."""

    def total(key: str) -> int:
        return int(sum(line[key] for line in lines.training if is_number(line.get(key))))

    counts, messages = _logged(run, {event_text(event) for event in lines.events})
    return {
        "events": dict(Counter(str(line.get("kind", "unknown")) for line in lines.events)),
        "last_events": lines.events[-_EVENTS:],
        "skipped_steps": total("skipped_steps"),
        "skipped_objects": total("skipped"),
        "lost_objects": start.get("lost_objects", 0),
        "lost_shards": start.get("lost_shards", []),
        "damaged_metrics_lines": lines.damaged,
        "logged": counts,
        "messages": messages[-_MESSAGES:],
        "earlier_messages": len(messages[:-_MESSAGES]),
    }


def _logged(run: Path, events: set[str]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Warnings and errors of all ranks, without those about events: numbers by level, different messages.

    The newest message is the last one; each has the number of times that it was logged.
    """
    counts, seen, newest = Counter[str](), Counter[tuple[str, str]](), dict[tuple[str, str], str]()
    for path in sorted((run / "logs").glob("rank-*.log")):
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                if (found := _LOG_LINE.match(text)) and found[3] not in events:
                    at, level, message = found.groups()
                    key = level.lower(), message
                    counts[key[0]] += 1
                    seen[key] += 1
                    newest[key] = max(at, newest.get(key, ""))
    last = sorted(newest, key=lambda key: newest[key])
    return dict(counts), [{"level": key[0], "message": key[1], "n": seen[key]} for key in last]
