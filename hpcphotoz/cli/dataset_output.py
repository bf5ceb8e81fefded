"""What commands that write datasets share: options on the columns and shards, and the line at the end."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcphotoz.cli.parser import Parser
from hpcphotoz.data.format.manifest import DEFAULT_STORAGE, STORAGE, Manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of
from hpcphotoz.sources.constants import DAMAGED, EBV_MAPS
from hpcphotoz.world import detect

WRITING = ("shard_rows", "storage", "processes")  # see `add_writing`
CORES_OR_RANKS = "one per core; under mpiexec its ranks"


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns these options by name, for a function's arguments."""
    return {name: getattr(options, name) for name in names}


def say_what_is_in(out: Path, manifest: Manifest, one: str, many: str = "", more: str = "") -> None:
    """Print on rank 0 what a new dataset holds; its objects are called `one` or, several, `many`."""
    unknown = sum(shard.unlabelled for shard in manifest.shards)
    unlabelled = f", {unknown} of unknown redshift" if unknown else ""
    shards = number_of(len(manifest.shards), "shard")
    if detect().is_first:
        print(f"{out}: {number_of(manifest.rows, one, many)} in {shards}{unlabelled}{more}")


def add_writing(parser: Parser, rows: int, what: str, processes: str) -> None:
    """Add the options on how shards are written: `what` --shard-rows counts, and defaults."""
    parser.add_argument("--shard-rows", type=int, default=rows, help=f"{what} (default {rows})")
    parser.add_argument(
        "--storage",
        choices=STORAGE,
        help=f"type of the stored pixels (default {DEFAULT_STORAGE}; with --append that of the dataset); "
        "int16: half the bytes, in steps of 1/32 sky sigma, wider in pixels above 512 sky sigmas; float32: "
        "nanomaggies as they are, for programs that read `images` by h5py alone",
    )
    parser.add_argument("--processes", type=int, help=f"worker processes (default: {processes})")


def add_ebv_map(parser: Parser, column: str) -> None:
    """Add the option that takes E(B-V) from a map rather than from `column`."""
    parser.add_argument(
        "--ebv-map",
        choices=tuple(EBV_MAPS),
        help=f"take E(B-V) by ra and dec from this map, which is installed for dustmaps, not from {column}",
    )


def add_keep(parser: Parser, source: str, more: str = "") -> None:
    """Add the option that names columns of `source` to keep; `more` ends its help."""
    parser.add_argument(
        "--keep",
        nargs="+",
        default=(),
        metavar="COLUMN",
        help=f"other columns of {source} that the shards hold too, with type and unit, for --where: "
        f"dered_petro_r primtarget, or under another name spectype=class{more}",
    )


def kept_columns(words: Sequence[str]) -> dict[str, str]:
    """Read `--keep`, words of the form NAME, GROUP/NAME or OURS=THEIRS.

    Returns:
        The input's name for each column, by the name that it gets: of GROUP/NAME, NAME.

    Raises:
        BadInput: a word of another form, or a name that is there twice.
    """
    kept: dict[str, str] = {}
    for word in words:
        ours, equals, theirs = word.partition("=")
        if not equals:  # of group/name, the name
            ours, theirs = word.rpartition("/")[2], word
        if not ours or not theirs:
            raise BadInput(f"--keep {word}: must be a column's name, or of the form spectype=class")
        if ours in kept:
            raise BadInput(f"--keep {word}: {ours} is there twice: give another name, as in {ours}2={theirs}")
        kept[ours] = theirs
    return kept


def add_damaged(parser: Parser) -> None:
    """Add the option --damaged."""
    parser.add_argument(
        "--damaged",
        choices=DAMAGED,
        default=DAMAGED[0],
        help="a file that is missing, cannot be read or is of other bands: fail, end the ingest (default); "
        "skip, list it in the manifest, say so, and leave its objects out",
    )


def add_append(parser: Parser) -> None:
    """Add the option --append."""
    parser.add_argument(
        "--append",
        action="store_true",
        help="add shards to the finished dataset in OUT, of the same bands, stamp, pixel scale, storage and "
        "extra columns; objects whose object_id it has are left out and counted",
    )
