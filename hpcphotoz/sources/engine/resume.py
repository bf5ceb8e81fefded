"""Finds the units that an interrupted build has finished, by their sidecars and fingerprints."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz import __version__
from hpcphotoz.data.format.folder import SIDECAR_SUFFIX, shard_name
from hpcphotoz.data.format.manifest import FORMAT_VERSION, Header, ShardEntry, shard_file_problem
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.engine.damage import has_damage


@dataclass(frozen=True)
class FinishedUnit:
    """One finished unit: its shard's manifest line, band moments and skipped objects, as in its sidecar."""

    shard: ShardEntry | None  # None: the unit has no stamps
    moments: dict[str, Any] | None
    skipped: tuple[dict[str, Any], ...]


def finished_units(
    out: Path, found: Sequence[Path], options: str, fingerprints: Sequence[str], first: int = 0
) -> tuple[dict[int, FinishedUnit], int]:
    """The finished units among the files found, and how many have another input now; removes other files.

    `first` is the number of the first unit's shard: above 0 where shards are added to a dataset.

    Raises:
        BadInput: the finished units are of other options, or none of them has the same input.
    """
    expected = {shard_name(first + k) + SIDECAR_SUFFIX: k for k in range(len(fingerprints))}
    kept: dict[int, FinishedUnit] = {}
    same = changed = 0
    for path in found:
        if not path.name.endswith(SIDECAR_SUFFIX):
            continue
        k, (fingerprint, done) = expected.get(path.name), _read_sidecar(path, options, first)
        if k is None or fingerprint != fingerprints[k]:
            changed += 1
            continue
        same += 1
        if has_damage(done.skipped):
            continue  # the file may be whole by now
        if done.shard is None or not shard_file_problem(out, done.shard):
            kept[k] = done
    if changed and not same:  # not what a replaced file does: another table, or another folder of input
        raise _other_build(out, first)
    stay = {shard_name(first + k) + SIDECAR_SUFFIX for k in kept}
    stay |= {done.shard.file for done in kept.values() if done.shard is not None}
    for path in found:
        if path.name not in stay:
            path.unlink()
    return kept, changed


def _read_sidecar(path: Path, options: str, first: int) -> tuple[str, FinishedUnit]:
    """Reads a sidecar: the unit's fingerprint, and the finished unit; BadInput: of other options."""
    try:
        tree = json.loads(path.read_text())
        if tree.get("options") != options:
            raise _other_build(path.parent, first)
        shard = None if tree["shard"] is None else ShardEntry(**tree["shard"])
        return tree["unit"], FinishedUnit(shard, tree["moments"], tuple(tree["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not readable ({type(error).__name__}: {error}): delete it") from None


def _other_build(out: Path, first: int) -> BadInput:
    if first:
        return BadInput(
            f"{out}: an unfinished --append of other input or options has left shards in it: finish that, or "
            f"delete {shard_name(first)} and those after it, with their {SIDECAR_SUFFIX}"
        )
    return BadInput(
        f"{out}: holds an unfinished dataset of other input or options: delete it, or choose another folder"
    )


def fingerprint_units(header: Header, make: Any, units: Sequence[Any], look: bool) -> tuple[str, list[str]]:
    """Returns fingerprints of the options (header and make) and of each unit.

    With `look`, sizes and times of the files that they name count; under MPI only rank 0 looks.
    """
    files: dict[Path, str] | None = {} if look else None
    options = Fingerprint(files).of((__version__, FORMAT_VERSION, header, make))
    return options, [Fingerprint(files).of(unit) for unit in units]


class Fingerprint:
    """SHA-256 of a value: types, lengths, every bit of arrays, and sizes and times of files.

    Fields of dataclasses that are not compared do not count.
    """

    def __init__(self, files: dict[Path, str] | None) -> None:
        self._sha256 = hashlib.sha256()
        self._files = files  # sizes and times of files looked at so far; None: none is looked at

    def of(self, value: Any) -> str:
        """Returns the hex digest of a value and everything in it."""
        self._add(value)
        return self._sha256.hexdigest()

    def _add(self, value: Any) -> None:
        if is_dataclass(value) and not isinstance(value, type):
            self._text(f"<{type(value).__qualname__}")
            for field in fields(value):
                if field.compare:
                    self._add((field.name, getattr(value, field.name)))
        elif isinstance(value, Mapping):
            self._add(sorted(value.items()))
        elif isinstance(value, list | tuple):
            self._text(f"[{len(value)}")
            for item in value:
                self._add(item)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._text(f"#{value.dtype.str}{value.shape}")
            self._sha256.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Path):
            self._file(value)
        elif value is None or isinstance(value, str | bytes | int | float | np.generic):
            self._text(repr(value))
        else:
            kind = type(value).__name__
            raise TypeError(f"{kind} in a plan: only plain values, arrays, paths and dataclasses")

    def _text(self, text: str) -> None:
        self._sha256.update(b"%d:" % len(text.encode()) + text.encode())

    def _file(self, path: Path) -> None:
        self._text(str(path))
        if self._files is None:
            return
        if path not in self._files:
            state = path.stat() if path.is_file() else None
            self._files[path] = "" if state is None else f"{state.st_size} {state.st_mtime_ns}"
        self._text(self._files[path])
