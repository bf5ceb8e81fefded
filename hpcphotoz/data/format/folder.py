"""Checks the folder that a dataset is written to, and locks it for one writer at a time."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcphotoz.atomic import check_output_folder, making_folder
from hpcphotoz.data.format.manifest import MANIFEST, SHARD_SUFFIXES
from hpcphotoz.errors import BadInput
from hpcphotoz.locks.lock import lock_file

LOCK_FILE = ".lock"
SIDECAR_SUFFIX = ".done.json"  # after a shard's name: the record of a finished shard, see `sources/build.py`
# Files of an unfinished dataset. A folder with others, such as a WebDataset's shard-000000.tar, is refused.
_ALLOWED_NAMES = re.compile(
    rf"(shard-\d{{5,}}({'|'.join(map(re.escape, SHARD_SUFFIXES))})({re.escape(SIDECAR_SUFFIX)}|\.xxh3)?"
    r"|manifest\.json)(\..*\.tmp)?|\.lock(\..*)?"
)


def shard_name(number: int) -> str:
    """File name of a shard, counted from 0: `shard-00000.hdf5`."""
    return f"shard-{number:05d}{SHARD_SUFFIXES[0]}"


@contextmanager
def lock_dataset_folder(out: Path, finished: bool = False) -> Iterator[list[Path]]:
    """Context manager that makes the folder of a dataset and locks it against other writers.

    It yields the files of the unfinished dataset that the folder holds, sorted; with `finished`, those that
    are named as files of a dataset are, except the manifest.

    Raises:
        BadInput: as `check_dataset_folder`, or another process is writing in it.
    """
    if not finished:
        check_dataset_folder(out)
    busy = f"{out}: another process is writing a dataset in it"
    with making_folder(out), lock_file(out / LOCK_FILE, busy, "choose another folder"):
        if not finished:
            check_dataset_folder(out)  # again: another writer may have finished meanwhile
            yield [path for path in _files(out) if not path.name.startswith(LOCK_FILE)]
        else:  # which may hold other files too: they stay
            names = (path for path in sorted(out.iterdir()) if _ALLOWED_NAMES.fullmatch(path.name))
            yield [p for p in names if p.name != MANIFEST and not p.name.startswith(LOCK_FILE)]


@contextmanager
def new_dataset_folder(out: Path) -> Iterator[None]:
    """Context manager that makes and locks the folder of a dataset, and empties an unfinished one.

    Raises:
        BadInput: as `lock_dataset_folder`, or it holds finished shards of an ingest, which can be continued.
    """
    with lock_dataset_folder(out) as left:
        if kept := [path for path in left if path.name.endswith(SIDECAR_SUFFIX)]:
            raise BadInput(
                f"{out}: holds an unfinished ingest ({kept[0].name}): continue it, delete it, or choose "
                "another folder"
            )
        for path in left:
            path.unlink()
        yield


def check_dataset_folder(out: Path) -> None:
    """Refuse a folder in which no dataset can be made, before hours of reading; create nothing.

    Raises:
        BadInput: it holds a finished dataset or other files, or cannot be made or written.
    """
    if (out / MANIFEST).exists():
        raise BadInput(f"{out}: already holds a finished dataset: delete it, or choose another folder")
    check_output_folder(out)
    if out.exists():
        _files(out)


def _files(out: Path) -> list[Path]:
    """The files of a folder, sorted; BadInput: one of them does not belong to a dataset."""
    found = sorted(out.iterdir())
    for path in found:
        plain = path.is_file() or not path.exists()  # another writer may just have removed it
        if not (plain and _ALLOWED_NAMES.fullmatch(path.name)):
            raise BadInput(f"{out}: holds other files ({path.name}): choose an empty or new folder")
    return found
