"""Entries of the record table: each a recipe, in TOML, with a table `entry` that says how it is started."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record.task import TASKS
from hpcphotoz.config import Config
from hpcphotoz.config.load import parse
from hpcphotoz.errors import BadInput

FOLDER = Path(__file__).parent / "entries"
PROGRAMS = ("hpcphotoz", "peer")
_KEYS = ("changed", "program", "ranks")


@dataclass(frozen=True)
class Entry:
    """One way to train the network.

    Attributes:
        name: of its file.
        changed: what is new in it, for the table.
        program: "hpcphotoz", or "peer": `benchmarks/peers/train.py`, with those options that it has.
        ranks: of torchrun, one thread each; 0: one process without torchrun, on all cores.
        config: every option.
        task: a name of `TASKS`.
    """

    name: str
    changed: str
    program: str
    ranks: int
    config: Config
    task: str = "cpu"


def names() -> list[str]:
    """Names of all entries."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Entry:
    """Read an entry.

    Raises:
        BadInput: no such entry, not TOML, a key of `entry` that is missing, unknown or of no use, or options
            that `hpcphotoz train` would refuse.
    """
    path = FOLDER / f"{name}.toml"
    if name not in names():
        raise BadInput(f"entry '{name}': want one of {', '.join(names())}")
    try:
        tree: dict[str, Any] = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not TOML: {error}") from None
    about = tree.pop("entry", {})
    task = about.pop("task", "cpu")
    if task not in TASKS:
        raise BadInput(f"{path}: task {task!r}: want {' or '.join(TASKS)}")
    if set(about) != set(_KEYS):
        raise BadInput(f"{path}: section entry: want the keys {', '.join(_KEYS)}")
    if about["program"] not in PROGRAMS:
        raise BadInput(f"{path}: program {about['program']!r}: want {' or '.join(PROGRAMS)}")
    if type(about["ranks"]) is not int or about["ranks"] < (about["program"] == "peer"):
        raise BadInput(f"{path}: ranks {about['ranks']!r}: want a number; 0, of hpcphotoz alone: no torchrun")
    return Entry(name, config=parse(tree, str(path)), task=task, **about)
