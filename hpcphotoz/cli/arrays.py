"""Commands that read files of image arrays: ingest arrays, ingest table."""

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hpcphotoz.cli.dataset_output import (
    CORES_OR_RANKS,
    WRITING,
    add_append,
    add_damaged,
    add_ebv_map,
    add_keep,
    add_writing,
    given,
    kept_columns,
    say_what_is_in,
)
from hpcphotoz.cli.parser import Commands, Parser, command, number, path
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.array_map import shipped_maps
from hpcphotoz.sources.arrays.map_text import describe_maps

_LABELS = """\
A redshift that is NaN, or -1 or below, is unknown; an object whose E(B-V) is not finite, -1 or
below, or above 100, is left out. Ids that are whole numbers keep their 64 bits: from 2^63 on they
are stored less 2^64. Other text becomes a hash, as the manifest says: ra and dec tell which
object it is."""


def ingest_arrays(options: argparse.Namespace) -> int:
    """Convert files of image arrays, HDF5, npz, FITS, Zarr or Parquet, by a map of their columns."""
    if options.guess is not None:
        if options.out is not None or options.map is not None:
            raise BadInput("--guess looks into one file and prints a map: leave out OUT, SRC and --map")
        return _guess(options)
    return _ingest(options, options.map)


def ingest_table(options: argparse.Namespace) -> int:
    """Convert a published set of image arrays: `ingest arrays` with the map of this name."""
    return _ingest(options, options.format)


def _ingest(options: argparse.Namespace, name: str) -> int:
    from hpcphotoz.sources.arrays.array_map import load_map
    from hpcphotoz.sources.arrays.ingest_arrays import ingest_arrays
    from hpcphotoz.sources.build import count_skipped

    how = given(
        options,
        *("crop", "redshifts", "keep_unlabelled", "zero_point", "limit", "ebv_map", "append", "damaged"),
        *WRITING,
    )
    how["keep"] = kept_columns(options.keep)
    manifest, skipped = ingest_arrays(options.out, options.sources, load_map(name), name, **how)
    left_out = count_skipped(skipped)
    more = f"; left out {left_out}, listed in {options.out / 'manifest.json'} ({_reasons(skipped)})"
    more = more if left_out else ""
    say_what_is_in(options.out, manifest, "stamp", more=more)
    return 0


def _reasons(skipped: Sequence[Mapping[str, Any]]) -> str:
    """Returns how many objects were left out for each reason, the commonest first."""
    from hpcphotoz.sources.build import count_skipped

    counts: Counter[str] = Counter()
    for entry in skipped:
        reason = "file cannot be used" if "damaged" in entry else entry["reason"]
        counts[re.sub(r"\bthe [^ ]+ band$", "a band", reason)] += count_skipped([entry])
    return "; ".join(f"{n}: {reason}" for reason, n in counts.most_common() if n)


def _guess(options: argparse.Namespace) -> int:
    from hpcphotoz.sources.arrays.guess import guess_map

    print(guess_map(options.guess), end="")
    return 0


class _Alone(argparse.Action):
    """An option that stands alone: with it, no other argument is required."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        for action in parser._actions:
            action.required = False
        setattr(namespace, self.dest, values)


def add(kinds: Commands) -> None:
    """Add the parsers of these commands to the kinds of `ingest`."""
    p = command(kinds, "arrays", ingest_arrays)
    _add_files(p)
    p.add_argument(
        "--map",
        required=True,
        metavar="MAP",
        help=f"TOML file that names the columns, or one of the shipped maps: {', '.join(shipped_maps())}",
    )
    p.add_argument(
        "--guess",
        type=path,
        action=_Alone,
        metavar="FILE",
        help="look into this file and print a map to edit, nothing else; no other argument is needed",
    )
    _add_options(p, "of maps without redshifts", "the map's")

    p = command(kinds, "table", ingest_table)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    head = "formats, and the columns of their files; N is the number of objects"
    p.epilog = f"{head}\n\n{describe_maps()}\n\n{_LABELS}"
    _add_files(p)
    p.add_argument(
        "--format",
        required=True,
        choices=tuple(shipped_maps()),
        help="format of the files, a shipped map: see below",
    )
    _add_options(p, "of formats without redshifts", "the format's")


def _add_files(p: Parser) -> None:
    p.add_argument(
        "out", type=path, help="dataset folder to make; an unfinished one of this ingest is continued"
    )
    p.add_argument(
        "sources",
        type=path,
        nargs="+",
        metavar="SRC",
        help="files, Zarr stores or folders of npy files; other folders are searched recursively",
    )


def _add_options(p: Parser, without: str, own: str) -> None:
    p.add_argument(
        "--crop", type=int, help="keep the central square of this side in pixels (default: whole stamps)"
    )
    p.add_argument(
        "--redshifts",
        type=path,
        help=f"{without}: CSV, FITS or VOTable with object_id and z_spec or, without it, z (empty, or -1 and "
        "below: unknown), joined by id",
    )
    p.add_argument(
        "--keep-unlabelled", action="store_true", help=f"{without}: keep objects without a redshift"
    )
    p.add_argument(
        "--zero-point", type=number, help=f"AB mag, 0 to 40, of one unit of the pixels (default: {own})"
    )
    p.add_argument("--limit", type=int, help="convert only this many rows")
    add_ebv_map(p, "the column of the files")
    add_keep(p, "the files")
    add_damaged(p)
    add_append(p)
    add_writing(p, 8192, "source rows per shard", CORES_OR_RANKS)
