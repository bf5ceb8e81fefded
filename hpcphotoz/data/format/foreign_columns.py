"""Finds the extra columns of shards that another program wrote."""

import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from hpcphotoz.data import hdf5
from hpcphotoz.data.format.extra import (
    FIXED_NAMES,
    MAX_COLUMNS,
    TYPES,
    ExtraColumn,
    check_extra,
    name_problem,
)
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.shards import naming_damage
from hpcphotoz.errors import BadInput

_TYPE_NAMES = {np.dtype(name): name for name in TYPES}


def find_extra(paths: Sequence[Path], header: Header) -> tuple[ExtraColumn, ...]:
    """Extra columns that all shards have, with one type and unit, in the order of their names.

    Other arrays of as many rows as there are images are named on standard error, one line each.

    Raises:
        BadInput: a shard cannot be read.
    """
    common: dict[str, ExtraColumn] = {}
    left_out: dict[str, str] = {}
    for k, path in enumerate(paths):
        with naming_damage(path), hdf5.open_file(path) as file:
            found = _extra_of(file, path, header, left_out)
        if not k:
            common = found
        for name in common.keys() ^ found.keys():
            left_out.setdefault(name, f"{path}: '{name}' is not in this shard, or only in this one")
        for name in [name for name in common if found.get(name) != common[name]]:
            one = common.pop(name)
            other = found.get(name, one)
            left_out.setdefault(
                name,
                f"{path}: '{name}' is {other.dtype}{other.shape} [{other.unit}], in {paths[0].name} "
                f"{one.dtype}{one.shape} [{one.unit}]",
            )
    extra: list[ExtraColumn] = []
    for name in sorted(common):
        try:
            check_extra([*extra, common[name]], header.bands, header.stamp)
            extra.append(common[name])
        except BadInput as error:
            left_out.setdefault(name, f"{paths[0]}: {error}")
    for text in left_out.values():
        print(f"{text}: no extra column", file=sys.stderr)
    return tuple(extra)


def read_extra_names(file: h5py.File) -> list[str]:
    """Names of the arrays beside the fixed columns, at most MAX_COLUMNS, sorted."""
    return sorted(set(file.keys()) - set(FIXED_NAMES))[:MAX_COLUMNS]


def _extra_of(
    file: h5py.File, path: Path, header: Header, left_out: dict[str, str]
) -> dict[str, ExtraColumn]:
    """The extra columns of a shard by name; others go to `left_out`, each with the reason."""
    images, found = hdf5.checked_array(file, "images"), {}
    for name in read_extra_names(file):
        if file.get(name, getclass=True) is h5py.Group:
            continue
        if name_problem(name):
            shown = "".join(c if c.isprintable() else "?" for c in name)[:80]
            left_out.setdefault(name, f"{path}: '{shown}' {name_problem(name)}")
            continue
        try:
            data = hdf5.checked_array(file, name)
            unit = hdf5.text_attribute(data, "unit") or ("",)
        except BadInput as error:
            left_out.setdefault(name, str(error))
            continue
        if not data.shape or data.shape[:1] != images.shape[:1]:
            continue  # no array of values an object
        kind = data.dtype
        dtype = kind.str[1:] if kind.kind == "S" else _TYPE_NAMES.get(kind, str(kind))
        if not hdf5.is_stored_as(data):
            problem = f"of type {kind}, as h5py does not write it: want numbers or fixed-length bytes"
            left_out.setdefault(name, f"{path}: '{name}' is {problem}")
            continue
        found[name] = ExtraColumn(name, dtype, unit[0], tuple(map(int, data.shape[1:])))
    return found
