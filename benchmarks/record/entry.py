"""Entries of the record table: each a recipe, in TOML, with a table `entry` that says how it is started."""

import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import COMMIT
from benchmarks.record.task import TASKS
from hpcphotoz.config import Config
from hpcphotoz.config.load import parse
from hpcphotoz.errors import BadInput, nearest

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
        commit: of the source, which ends in "-dirty" if files differ from it or it lacks the entry's; None:
            not a checkout.
        task: a name of `TASKS`.
    """

    name: str
    changed: str
    program: str
    ranks: int
    config: Config
    commit: str | None = None
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
        raise BadInput(f"entry '{name}': not known{nearest(name, names())}; valid: {', '.join(names())}")
    try:
        tree: dict[str, Any] = tomllib.loads(path.read_text())
    except ValueError as error:  # of TOML, or of UTF-8
        raise BadInput(f"{path}: not TOML: {error}") from None
    about = _about(tree.pop("entry", {}), path)
    return Entry(name, config=parse(tree, str(path)), commit=_commit(path), **about)


def _about(found: Any, path: Path) -> dict[str, Any]:
    """The table `entry`, checked, with its task."""
    about = {"task": "cpu", **found} if isinstance(found, dict) else {}
    wanted = f"want the keys {', '.join(_KEYS)}, and on a GPU task"
    if unknown := sorted(set(about) - {*_KEYS, "task"}):
        raise BadInput(f"{path}: section entry: unknown key '{unknown[0]}': {wanted}")
    if missing := [key for key in _KEYS if key not in about]:
        raise BadInput(f"{path}: section entry: no key '{missing[0]}': {wanted}")
    if about["task"] not in list(TASKS):
        raise BadInput(f"{path}: task {about['task']!r}: want {' or '.join(TASKS)}")
    if about["program"] not in PROGRAMS:
        raise BadInput(f"{path}: program {about['program']!r}: want {' or '.join(PROGRAMS)}")
    if type(about["ranks"]) is not int or about["ranks"] < (about["program"] == "peer"):
        raise BadInput(f"{path}: ranks {about['ranks']!r}: want a number; 0, of hpcphotoz alone: no torchrun")
    changed = about["changed"]
    if not isinstance(changed, str) or not changed.strip() or "\n" in changed or "|" in changed:
        raise BadInput(f"{path}: changed {changed!r}: want one line of text for the table, without '|'")
    return about


def _commit(path: Path) -> str | None:
    """`COMMIT`, which does not see files that git does not know, marked if that of the entry is one."""
    words = ["git", "-C", str(path.parent), "ls-files", "--error-unmatch", path.name]
    try:
        status = subprocess.run(words, capture_output=True, timeout=30, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        return COMMIT  # a snapshot on a machine without git
    unknown = status == 1  # 128: not a repository
    return f"{COMMIT}-dirty" if unknown and COMMIT and not COMMIT.endswith("-dirty") else COMMIT
