"""Adds shards to a finished dataset (`--append`), which stays readable as it was until they are all there."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.folder import SIDECAR_SUFFIX, check_dataset_folder
from hpcphotoz.data.format.manifest import DEFAULT_STORAGE, MANIFEST, Header, Manifest, read_manifest
from hpcphotoz.data.read.object_ids import read_object_ids
from hpcphotoz.errors import BadInput

Ids = npt.NDArray[np.int64]
# Keys of the map of arrays that decide what pixel values mean; each set is converted by its own map.
_CALIBRATION = ("unit", "mask", "mask_true", "inverse_variance", "sky_sigma_from")
_NUMBER = re.compile(r"shard-(\d{1,9})\.")


@dataclass(frozen=True)
class Target:
    """What a build writes to: a new dataset, or a finished one with the objects that it has."""

    manifest_sha256: str = ""  # "": a new dataset
    object_id: Ids = field(default_factory=lambda: np.zeros(0, np.int64))  # sorted
    provenance: Mapping[str, Any] = field(default_factory=dict)  # of the finished one
    extra: tuple[ExtraColumn, ...] = ()  # of the finished one
    storage: str = DEFAULT_STORAGE  # of the images, where none is asked for: as in the finished one

    def lacks(self, object_id: Ids) -> npt.NDArray[np.bool_]:
        """Returns which of these objects (N,) are not in the dataset."""
        return np.isin(object_id, self.object_id, invert=True)

    def fit_text(self, columns: Sequence[ExtraColumn]) -> tuple[ExtraColumn, ...]:
        """Returns extra columns, with those of text as wide as in the dataset where that is wider."""
        there = {column.name: column for column in self.extra if column.dtype[0] == "S"}
        fitted = []
        for column in columns:
            known = there.get(column.name)
            if known and column.dtype[0] == "S" and int(known.dtype[1:]) > int(column.dtype[1:]):
                column = replace(column, dtype=known.dtype)
            fitted.append(column)
        return tuple(fitted)

    def append(self, already_there: int) -> "Append | None":
        """Returns what `build_dataset` must know, with the number of objects that are left out."""
        return Append(self.manifest_sha256, already_there) if self.manifest_sha256 else None


@dataclass(frozen=True)
class Append:
    """The dataset to append to, and the number of objects that were left out, as they are in it."""

    manifest_sha256: str
    already_there: int


def find_target(out: Path, append: bool) -> Target:
    """Checks the folder to write to, before anything is read; with `append`, reads the ids of its objects.

    Raises:
        BadInput: a folder in which no dataset can be made; with `append`, one that holds none.
    """
    if not append:
        check_dataset_folder(out)
        return Target()
    if not (out / MANIFEST).is_file():
        raise BadInput(f"{out}: holds no finished dataset to append to: leave out --append")
    manifest = read_manifest(out)
    return Target(
        manifest.sha256,
        np.sort(read_object_ids(out, manifest)),
        manifest.provenance,
        manifest.header.extra,
        manifest.header.storage,
    )


def report_calibration(target: Target, record: Mapping[str, Any]) -> None:
    """Says on standard error in what the calibration of arrays to append differs from that of the dataset.

    That is allowed, as each file's pixels become nanomaggies by their own zero points.
    """
    if not isinstance(target.provenance.get("map"), dict):
        return  # new, or of no arrays
    here, there = (
        {"zero point": one.get("zero_point_ab")} | {key: dict(one["map"]).get(key) for key in _CALIBRATION}
        for one in (record, target.provenance)
    )
    other = [
        f"{key} {here[key]} here, {there[key]} in the dataset" for key in here if here[key] != there[key]
    ]
    if other:
        print(f"append: {'; '.join(other)}: what is added is converted by its own", file=sys.stderr)


def read_base(out: Path, header: Header, append: Append) -> Manifest:
    """Reads the manifest of the locked dataset to append to.

    Raises:
        BadInput: it has another header, or has changed since the build was planned.
    """
    manifest = read_manifest(out)
    if manifest.sha256 != append.manifest_sha256:
        raise BadInput(f"{out}: another process has changed the dataset meanwhile: run this again")
    if problem := header.difference(manifest.header):
        raise BadInput(f"{out}: cannot append: {problem} in the dataset: choose another folder")
    return manifest


def next_number(manifest: Manifest) -> int:
    """Returns the number of the first shard that is added."""
    found = [_NUMBER.match(shard.file) for shard in manifest.shards]
    return max((int(one[1]) for one in found if one), default=-1) + 1


def unfinished_files(files: Sequence[Path], first: int) -> list[Path]:
    """Returns those of a dataset's files that belong to shards still to be added, numbered from `first`.

    Sidecars of other shards are removed: an earlier `--append` was killed after it had written the manifest.
    """
    mine = []
    for path in files:
        number = _NUMBER.match(path.name)
        if number and int(number[1]) >= first:
            mine.append(path)
        elif number and path.name.endswith(SIDECAR_SUFFIX):
            path.unlink()
    return mine
