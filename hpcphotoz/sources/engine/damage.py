"""Input files that cannot be used end an ingest or, with `--damaged skip`, are listed and left out."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.optional_imports import MissingPackage


def damage_entry(damaged: str, name: str, error: BadInput, objects: int = 0) -> dict[str, Any]:
    """Returns the entry of the manifest's `skipped` for a file that cannot be used.

    Args:
        damaged: of DAMAGED.
        name: of the file, or of the files of one place.
        error: what is wrong with it.
        objects: how many are left out with it; 0: unknown, as it could not even be looked into.

    Raises:
        BadInput: `error` itself, unless damaged files are skipped; always for a package that is missing.
    """
    if damaged != "skip" or isinstance(error, MissingPackage):
        raise error
    return {"damaged": name, "reason": str(error), "count": objects}


def has_damage(skipped: Iterable[Mapping[str, Any]]) -> bool:
    """Returns whether one of these entries is of a damaged file."""
    return any("damaged" in entry for entry in skipped)


def merge_damage(skipped: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the entries with one for each damaged file, which counts its objects in all shards."""
    merged: list[dict[str, Any]] = []
    damaged: dict[str, dict[str, Any]] = {}
    for entry in skipped:
        if "damaged" not in entry:
            merged.append(entry)
        elif entry["damaged"] in damaged:
            damaged[entry["damaged"]]["count"] += entry["count"]
        else:
            damaged[entry["damaged"]] = dict(entry)
            merged.append(damaged[entry["damaged"]])
    return merged


def report_damage(skipped: Iterable[Mapping[str, Any]]) -> None:
    """Says on standard error which files were left out, and why, one line each."""
    for entry in skipped:
        if "damaged" in entry:
            objects = f" ({entry['count']} objects)" if entry["count"] else ""
            print(f"left out {entry['damaged']}{objects}: {entry['reason']}", file=sys.stderr)
