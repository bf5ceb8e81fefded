"""What an event of metrics.jsonl means, in words: one text for the log and for the summary of a run."""

from collections.abc import Mapping
from typing import Any

from hpcphotoz.output import number_of

_NOT_FACTS = ("step", "epoch", "part", "kind")


def event_text(event: Mapping[str, Any]) -> str:
    """One line about an event, which may be of another version and lack some figures."""
    step, kind = f"step {event['step']}", event.get("kind")
    if kind == "skipped_step":
        return f"{step} is skipped: {not_finite(event)}"
    if kind == "loss_spike" and all(event.get(key) is not None for key in ("step_loss", "median_loss")):
        middle = f"the median of the steps before is {event['median_loss']:.4g}"
        return f"{step}: the loss is {event['step_loss']:.4g}: {middle}"
    facts = {key: value for key, value in event.items() if key not in _NOT_FACTS and value not in (None, [])}
    more = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
    return f"{step}: {str(kind or 'unknown event').replace('_', ' ')}{': ' if more else ''}{more}"


def not_finite(event: Mapping[str, Any]) -> str:
    """What was not finite in a skipped step: the loss or the gradient, and of which objects."""
    what, n = event.get("reason") or "loss or gradient", event.get("objects") or 0
    return f"the {what}{_of_objects(n, event.get('object_ids') or []) if n else ''} is not finite"


def _of_objects(n: int, ids: list[int]) -> str:
    if not ids:
        return f" of {number_of(n, 'object')}"
    more = f" and {n - len(ids)} more" if n > len(ids) else ""
    return f" of object{'s' if n > 1 else ''} {', '.join(map(str, ids))}{more}"
