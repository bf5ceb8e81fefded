"""Values in Slurm's own spelling: time limits, GPUs per node, memory."""

import re

from hpcphotoz.errors import BadInput

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_GPUS = re.compile(r"(?:([A-Za-z][\w.+-]*):)?(\d+)")
_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)


def parse_time(text: str) -> int:
    """Seconds of a time limit: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s, as for sbatch.

    Raises:
        BadInput: another form, or no time at all: a run is saved ahead of its limit, so it needs one.
    """
    found = _TIME.fullmatch(text) if text.isascii() else None
    if found is None:
        raise BadInput(
            f"--time {text}: write minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s, e.g. 4:00:00 or 1-12:00:00"
        )
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # h, h:m or h:m:s
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # m or m:s
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise BadInput(f"--time {text}: must be above 0; the run is saved ahead of its time limit")
    return total


def parse_gpus(text: str) -> tuple[str, int]:
    """Type ("" for any) and number of GPUs per node: "4" or "h100:4".

    Raises:
        BadInput: another form.
    """
    found = _GPUS.fullmatch(text) if text.isascii() else None
    if found is None:
        raise BadInput(f"--gpus-per-node {text}: write a number or type:number, e.g. 4 or h100:4")
    kind, number = found[1] or "", int(found[2])
    if kind == "gpu":
        raise BadInput(f"--gpus-per-node {text}: that is the spelling of --gres: write {number}")
    return kind, number


def parse_memory(text: str) -> str:
    """Memory per node for `--mem`, such as "64G" or "128000M"; "0" is all memory of a node.

    Raises:
        BadInput: another form, or a number without unit, which Slurm would take for MB.
    """
    found = _MEMORY.fullmatch(text) if text.isascii() else None
    if found is None:
        raise BadInput(f"--mem {text}: write a whole number with K, M, G or T, e.g. 64G; 0: all of the node")
    number, unit = int(found[1]), found[2].upper()
    if number and not unit:
        raise BadInput(f"--mem {text}: Slurm takes that for MB: write {number}G or {number}M")
    return f"{number}{unit}" if number else "0"
