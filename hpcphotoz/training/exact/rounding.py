"""What decides how sums are rounded, for the provenance; and what a resumed run has of it that is other."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpcphotoz.config import Config
from hpcphotoz.output import say
from hpcphotoz.provenance import read_starts
from hpcphotoz.training.distributed import group
from hpcphotoz.world import World

_OF_A_START = ("world_size", "torch", "speed", "rounding")  # keys of provenance.json


def rounding_facts(config: Config, world: World, device: torch.device) -> dict[str, Any]:
    """What decides how sums are rounded beside torch, number of ranks and `ComputeOptions`; on all ranks.

    Where ranks differ, such as in the kind of their processors, a fact is the list of those of all ranks.
    """
    own: dict[str, Any] = {"threads": torch.get_num_threads(), "vector_unit": _vector_unit()}
    if device.type == "cuda":
        own = {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        own["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    else:
        own["processor"] = _processor()
    ranks = [json.loads(text or "") for text in group.gather_texts(json.dumps(own), world)]
    of_ranks = {name: [rank.get(name) for rank in ranks] for name in own}
    facts = {name: each[0] if each.count(each[0]) == len(each) else each for name, each in of_ranks.items()}
    options: dict[str, Any] = {"deterministic": config.compute.deterministic, "overlap": config.overlap.mode}
    if config.overlap.mode == "ranks":
        options["attackers"] = config.overlap.attackers
    return {**options, **facts}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What rounds otherwise in the second of two starts of provenance.json: name, value, and value now."""
    found = []
    for key in _OF_A_START:
        if key not in before:  # a start of an earlier version
            continue
        old, new = before[key], now[key]
        if not isinstance(old, Mapping):
            old, new = {key: old}, {key: new}
        names = [*old, *(name for name in new if name not in old)]
        differing = [name for name in names if old.get(name) != new.get(name)]
        found += [f"{name} ({_text(old.get(name))}, now {_text(new.get(name))})" for name in differing]
    return found


def warn_of_changes(run: Path) -> None:
    """Warn if a run of deterministic mode was resumed and rounds otherwise than before."""
    starts = read_starts(run)
    if len(starts) < 2 or not (starts[-1]["step"] and starts[-1]["rounding"]["deterministic"]):
        return
    if not (found := changes(starts[-2], starts[-1])):
        return
    text = (
        f"compute.deterministic: {run} goes on with another {', '.join(found)}: from here on it is an "
        "unbroken run up to the rounding of sums, not to the bit"
    )
    say(f"hpcphotoz: warning: {text}", sys.stderr)


def _text(value: object) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _vector_unit() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def _processor() -> str | None:
    """Model of the processor; None where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
