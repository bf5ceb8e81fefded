"""The difference of two runs: options, data, versions, curves, validations, throughput and weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcphotoz.errors import BadInput
from hpcphotoz.provenance import datasets_of, read_starts
from hpcphotoz.training.run.network import read_state
from hpcphotoz.training.summary.metrics_lines import MetricsLines, is_number, of_run
from hpcphotoz.training.summary.run_summary import flat, read_config, versions

_VALIDATION = ("epoch", "step", "n", "bias", "sigma_mad", "eta")
_NOT_COMPARED = "step epoch n part".split()


def compare(one: Path, other: Path) -> dict[str, Any]:
    """The difference of two runs, as JSON knows it: pairs hold the figure of `one`, then of `other`.

    Raises:
        BadInput: a folder holds no run, or no line of metrics yet.
    """
    pair = one, other
    options = [flat(read_config(run)) for run in pair]
    lines = [MetricsLines.read(run) for run in pair]
    for run, found in zip(pair, lines, strict=True):
        if not found.training:
            raise BadInput(f"{run}: no line of metrics yet: wait for the first, after run.log_steps steps")
    starts = [read_starts(run)[-1] for run in pair]
    manifests = [start.get("manifest_sha256") for start in starts]
    made = [versions(start) for start in starts]
    return {
        "runs": [str(run) for run in pair],
        "options": {
            name: [own.get(name) for own in options]
            for name in dict.fromkeys([*options[0], *options[1]])
            if options[0].get(name) != options[1].get(name)
        },
        "data": {
            "same": None not in manifests and manifests[0] == manifests[1],
            "manifest_sha256": manifests,
            "datasets": [datasets_of(run) for run in pair],
        },
        "versions": {name: [own[name] for own in made] for name in made[0] if made[0][name] != made[1][name]},
        "world_size": [start.get("world_size") for start in starts],
        "loss": _losses(*lines),
        "validation": _last_validations(*lines),
        "throughput": _throughput(*lines),
        "weights": compare_weights(one, other),
    }


def _losses(one: MetricsLines, other: MetricsLines) -> dict[str, Any]:
    """The losses at the steps that both curves have."""
    ours, theirs = dict(one.curve("loss")), dict(other.curve("loss"))
    steps = sorted(ours.keys() & theirs.keys())
    found: dict[str, Any] = {"steps": steps, "values": [[ours[s], theirs[s]] for s in steps]}
    worst = max(steps, key=lambda step: abs(ours[step] - theirs[step]), default=None)
    first = next((step for step in steps if ours[step] != theirs[step]), None)
    found["max_difference"] = None if worst is None else abs(ours[worst] - theirs[worst])
    return {**found, "at_step": worst, "first_different_step": first}


def _last_validations(one: MetricsLines, other: MetricsLines) -> dict[str, list[Any]]:
    """The figures of the last validation of each."""
    last = [(found.validations or [{}])[-1] for found in (one, other)]
    names = [*_VALIDATION, *(f"{name}_adversarial" for name in _VALIDATION[2:])]
    return {name: [own.get(name) for own in last] for name in names if any(name in own for own in last)}


def _throughput(one: MetricsLines, other: MetricsLines) -> dict[str, Any]:
    found = [of_run(own.curve("images_per_s")) for own in (one, other)]
    rates = [None if own is None else own["median"] for own in found]
    waits = [of_run(own.curve("data_wait")) for own in (one, other)]
    a, b = rates
    return {
        "images_per_s": rates,
        "ratio": b / a if a and b is not None else None,
        "data_wait": [None if own is None else own["median"] for own in waits],
    }


def compare_weights(one: Path, other: Path) -> dict[str, Any]:
    """The greatest difference of two networks' weights, by the newest checkpoint of each.

    Returns:
        `steps` of the checkpoints; `max_difference`, absolute, and the name of its `tensor`; `reason` why
        there is none: another network, no checkpoint, or weights that are not finite.
    """
    nothing = {"steps": [None, None], "max_difference": None, "tensor": None}
    try:
        found = [read_state(run).state for run in (one, other)]
    except BadInput as error:
        return {**nothing, "reason": str(error)}
    ours, theirs = ({k: v for k, v in s["model"].items() if isinstance(v, Tensor)} for s in found)
    steps = [int(own["step"]) for own in found]
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        return {**nothing, "steps": steps, "reason": "the networks have other tensors or shapes"}
    greatest, where = -1.0, None
    for name, value in ours.items():
        difference = (value.double() - theirs[name].double()).abs()
        if not torch.isfinite(difference).all():
            return {**nothing, "steps": steps, "tensor": name, "reason": f"{name} is not finite"}
        if difference.numel() and float(difference.max()) > greatest:
            greatest, where = float(difference.max()), name
    return {"steps": steps, "max_difference": max(greatest, 0.0), "tensor": where, "reason": None}


def differs(value: object, other: object) -> str:
    """The difference of two numbers, with its sign; "": one of them is none."""
    if not (is_number(value) and is_number(other)):
        return ""
    return f"{float(str(other)) - float(str(value)):+.4g}"
