"""The runs of a sweep: the product of values of options, each with a folder name that tells its values."""

import csv
import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from hpcphotoz.config import load as config
from hpcphotoz.errors import BadInput

MOST_RUNS = 1000  # Slurm's own default for a job array
_LONGEST_NAME = 120  # characters of a folder's name
_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?")


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    name: str  # of its folder, such as "eps=0.25_seed=0"
    values: Mapping[str, str]  # of the swept options: `section.key` -> text, as on a command line


def parse_sweep(words: Sequence[str]) -> list[SweepRun]:
    """The runs of `--sweep KEY=VALUES ...`, the last key changing fastest.

    Args:
        words: each `section.key=a,b,c`. A value with a comma is put in double quotes, as in CSV. For options
            that are numbers, `a:b` and `a:b:step` are whole numbers, as Python's range.

    Raises:
        BadInput: not of this form, a value or key given twice, or more than 1,000 runs.
    """
    keys: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"\w+\.\w+", key):
            raise BadInput(f"--sweep {word}: want section.key=VALUES, such as attack.eps=0.25,0.5")
        if key in keys:
            raise BadInput(f"--sweep {key}: is given twice: give all its values at once")
        keys[key] = _values(key, text)
    count = math.prod(map(len, keys.values()))
    if count > MOST_RUNS:
        product = " x ".join(str(len(values)) for values in keys.values())
        raise BadInput(f"--sweep: {product} = {count} runs: want at most {MOST_RUNS}")
    found = [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]
    names = [_name(values) for values in found]
    # Values that differ only in characters which a name does not have, or in case, which some disks ignore.
    folded = [name.casefold() for name in names]
    return [
        SweepRun(name if folded.count(name.casefold()) == 1 else f"{name}-{_digest(values)}", values)
        for name, values in zip(names, found, strict=True)
    ]


def _values(key: str, text: str) -> list[str]:
    try:
        (items,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError) as error:
        raise BadInput(f"--sweep {key}={text}: {error}: put a value with a comma in double quotes") from None
    if "" in items or not items:
        raise BadInput(f"--sweep {key}={text}: an empty value")
    numeric, values = _is_number(key), list[str]()
    for item in items:
        if numeric and ":" in item:
            values += _range(key, item)
        else:
            values.append(item)
    seen: dict[object, str] = {}
    for value in values:
        same = comparable(key, value)
        if same in seen:
            also = "" if seen[same] == value else f", as {seen[same]}"
            raise BadInput(f"--sweep {key}={text}: {value} is given twice{also}")
        seen[same] = value
    return values


def _range(key: str, item: str) -> list[str]:
    found = _RANGE.fullmatch(item)
    if found is None:
        raise BadInput(f"--sweep {key}={item}: a range is a:b or a:b:step of whole numbers, without b")
    start, stop, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step == 0 or not (span := range(start, stop, step)):
        raise BadInput(f"--sweep {key}={item}: this range is empty")
    count = 1 + (span[-1] - start) // step  # the len() of a long range is an error
    if count > MOST_RUNS:
        raise BadInput(f"--sweep {key}={item}: {count} values: want at most {MOST_RUNS} runs")
    return [str(value) for value in span]


def _is_number(key: str) -> bool:
    section, _, name = key.partition(".")
    options = config.sections().get(section)
    field = options.model_fields.get(name) if options else None
    return field is not None and bool({int, float} & {field.annotation, *get_args(field.annotation)})


def comparable(key: str, text: str) -> object:
    """What tells values apart: 0.5 is 0.50. Of a value that the option refuses later, the text."""
    try:
        found = config.value_of(key, text)
    except (ValueError, AttributeError):
        return text
    return tuple(found) if isinstance(found, list) else found


def _name(values: Mapping[str, str]) -> str:
    """A folder's name without characters that a shell, Slurm or another system reads as something else."""
    parts = [f"{key.partition('.')[2]}={_safe(value)}" for key, value in values.items()]
    name = "_".join(parts)  # a container cannot bind a folder with a comma in its name
    changed = any(_safe(value) != value for value in values.values())
    if len(name) > _LONGEST_NAME:
        return f"{name[:_LONGEST_NAME]}-{_digest(values)}"
    # The same name for the same values, whatever other values a later sweep has.
    return f"{name}-{_digest(values)}" if changed else name


def _safe(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", value)


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]
