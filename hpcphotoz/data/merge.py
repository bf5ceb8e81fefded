"""Merges datasets of equal headers into one: `hpcphotoz merge`."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcphotoz.atomic import atomic_write
from hpcphotoz.data.format.folder import check_dataset_folder, new_dataset_folder, shard_name
from hpcphotoz.data.format.manifest import Manifest, read_manifest, shard_file_problem
from hpcphotoz.data.format.shards import CHECKSUM_SUFFIX, checksum_path
from hpcphotoz.data.format.stamps import BandMoments
from hpcphotoz.data.format.writer import finish_dataset
from hpcphotoz.data.read.object_ids import read_object_ids
from hpcphotoz.data.read.rows import verify
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of, say
from hpcphotoz.progress import track


def merge_datasets(out: Path, datasets: Sequence[Path], verify_all: bool = False) -> Manifest:
    """Make one dataset of several, whose shards it shares by hard links; return its manifest.

    Where the file system allows no hard link, shards are copied, which is said once on standard error. The
    band statistics are combined from those of the manifests, right to a few units in the last place.

    Args:
        out: folder to create; an unfinished merge in it is replaced.
        datasets: folders of datasets, in the order of their shards in the new one.
        verify_all: first read every byte of the datasets and compare checksums, as `inspect --verify` does.

    Raises:
        BadInput: the headers differ, an object id is there twice, a dataset is damaged, or the folder cannot
            be used.
    """
    check_dataset_folder(out)
    manifests = [read_manifest(folder) for folder in datasets]
    for folder, manifest in zip(datasets, manifests, strict=True):
        if problem := manifest.header.difference(manifests[0].header):
            raise BadInput(f"{folder}: {problem} in {datasets[0]}: only equal datasets are merged")
    _refuse_double_ids(datasets, manifests)
    if verify_all:
        for folder, manifest in zip(datasets, manifests, strict=True):
            verify(folder, manifest)
    moments = BandMoments(len(manifests[0].header.bands))
    for manifest in manifests:
        moments.merge(BandMoments.from_statistics(manifest.statistics, manifest.rows, manifest.header.stamp))
    provenance = {
        "command": "merge",
        "sources": [
            {
                "name": folder.resolve().name,
                "manifest_sha256": manifest.sha256,
                "rows": manifest.rows,
                "shards": len(manifest.shards),
                "provenance": dict(manifest.provenance),
            }
            for folder, manifest in zip(datasets, manifests, strict=True)
        ],
    }
    sources = [
        (folder, shard) for folder, one in zip(datasets, manifests, strict=True) for shard in one.shards
    ]
    entries, copied = [], False
    with new_dataset_folder(out):
        for number, (folder, shard) in enumerate(track(sources, "merging shards", total=len(sources))):
            entry = replace(shard, file=shard_name(number))
            why = _link_or_copy(folder / shard.file, out / entry.file)
            if (folder / (shard.file + CHECKSUM_SUFFIX)).exists():
                _link_or_copy(checksum_path(folder, shard), out / (entry.file + CHECKSUM_SUFFIX))
            if wrong := shard_file_problem(out, entry):
                raise BadInput(wrong)
            if why and not copied:
                say(f"{out}: shards are copied, not linked: {folder}: {why}", sys.stderr)
            copied = copied or bool(why)
            entries.append(entry)
        return finish_dataset(out, manifests[0].header, entries, moments, provenance)


def _refuse_double_ids(datasets: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    ids = [read_object_ids(folder, manifest) for folder, manifest in zip(datasets, manifests, strict=True)]
    every = np.sort(np.concatenate(ids))
    double = every[1:][every[1:] == every[:-1]]
    if len(double):
        where = [str(folder) for folder, own in zip(datasets, ids, strict=True) if double[0] in own]
        several = number_of(len(double), "row repeats", "rows repeat")
        raise BadInput(
            f"{' and '.join(where)}: object_id {double[0]} is there twice ({several} the id of another): an "
            "object may be in one dataset only"
        )


def _link_or_copy(source: Path, target: Path) -> str:
    """Make a hard link, or where there can be none, a copy; return why there is no link, or ""."""
    try:
        os.link(source, target, follow_symlinks=False)
        return ""
    except OSError as error:  # another file system, one without links, or a file of another user
        why = error.strerror or str(error)
    try:
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise BadInput(f"{target}: cannot be written: {error.strerror or error}") from None
    return why
