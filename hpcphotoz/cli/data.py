"""Commands that make and index datasets: simulate, ingest, index."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcphotoz.cli.parser import Commands, Parser, command, number, path, seed
from hpcphotoz.data.format.manifest import STORAGE, Manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of
from hpcphotoz.sources.constants import MASKED_FRACTION
from hpcphotoz.sources.published.file_layouts import FILE_LAYOUTS, describe_formats
from hpcphotoz.world import detect

_WRITING = ("shard_rows", "storage", "processes")  # see `_add_writing`
_CORES_OR_RANKS = "one per core; under mpiexec its ranks"


def simulate(options: argparse.Namespace) -> int:
    """Simulate galaxies of known redshift and write them as a dataset."""
    how = _given(options, "seed", *_WRITING)
    if options.onto is not None:
        from hpcphotoz.sources.simulation.inject import simulate_onto

        manifest = simulate_onto(options.out, options.n, options.onto, **how)
    else:
        from hpcphotoz.sources.mpi import refuse_ranks
        from hpcphotoz.sources.simulation.simulate import simulate

        refuse_ranks("simulate without --onto uses the cores of one machine: start one process")
        manifest = simulate(options.out, options.n, **how)
    _say_what_is_in(options.out, manifest, "galaxy", "galaxies")
    return 0


def ingest_sdss_frames(options: argparse.Namespace) -> int:
    """Cut stamps of catalogued objects from SDSS frames and write them as a dataset."""
    from hpcphotoz.sources.surveys.ingest_sdss import ingest_frames

    how = _given(options, "stamp", "bands", "masked_fraction", "epochs", *_WRITING)
    columns = _columns(options.columns)
    manifest = ingest_frames(options.out, options.frames, options.objects, columns=columns, **how)
    _say_what_is_in(options.out, manifest, "stamp")
    return 0


def _columns(words: Sequence[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for word in words:
        key, equals, name = word.partition("=")
        if not (key and equals and name):
            raise BadInput(f"--columns {word}: must be of the form ra=RAJ2000")
        if key in columns:
            raise BadInput(f"--columns {word}: {key} is {columns[key]} already: name one column for it")
        columns[key] = name
    return columns


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _say_what_is_in(out: Path, manifest: Manifest, one: str, many: str = "", more: str = "") -> None:
    """Print on rank 0 what a new dataset holds; its objects are called `one` or, several, `many`."""
    unknown = sum(shard.unlabelled for shard in manifest.shards)
    unlabelled = f", {unknown} of unknown redshift" if unknown else ""
    shards = number_of(len(manifest.shards), "shard")
    if detect().is_first:
        print(f"{out}: {number_of(manifest.rows, one, many)} in {shards}{unlabelled}{more}")


def ingest_table(options: argparse.Namespace) -> int:
    """Convert a published set of HDF5 or npz files to a dataset."""
    from hpcphotoz.sources.build import count_skipped
    from hpcphotoz.sources.published.ingest_table import ingest_table

    how = _given(options, "crop", "redshifts", "keep_unlabelled", "zero_point", "limit", *_WRITING)
    manifest, skipped = ingest_table(options.out, options.sources, options.format, **how)
    left_out = count_skipped(skipped)
    more = f"; left out {left_out}, listed in {options.out / 'manifest.json'}" if left_out else ""
    _say_what_is_in(options.out, manifest, "stamp", more=more)
    return 0


def index(options: argparse.Namespace) -> int:
    """Check shards that another program wrote, and write the manifest that makes them a dataset."""
    from hpcphotoz.data.format.index import index_folder

    manifest = index_folder(options.folder)
    shards = number_of(len(manifest.shards), "shard")
    print(f"{options.folder}: {number_of(manifest.rows, 'object')} in {shards}")
    return 0


def add(commands: Commands) -> None:
    """Add the parsers of these commands."""
    p = command(commands, "simulate", simulate)
    p.add_argument("out", type=path, help="dataset folder to create")
    p.add_argument("--n", type=int, required=True, help="number of galaxies")
    p.add_argument("--seed", type=seed, default=0, help="galaxy k of a seed is always the same (default 0)")
    p.add_argument(
        "--onto",
        type=path,
        metavar="FRAMES",
        help="add the galaxies to real sky: a folder, searched recursively, with SDSS DR7 fpC frames, their "
        "fpM and psField files (default: simulated sky)",
    )
    _add_writing(p, 1024, "galaxies per shard", "one per core")

    p = commands.add_parser("ingest", help="convert existing images to a dataset", allow_abbrev=False)
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    p = command(kinds, "sdss-frames", ingest_sdss_frames)
    p.add_argument("out", type=path, help="dataset folder to make")
    p.add_argument(
        "--frames",
        type=path,
        required=True,
        help="folder with SDSS frames, searched recursively: fpC-*.fit[.gz] (DR7), frame-*.fits[.bz2] (DR8 "
        "and later), and their mask planes fpM-*.fit[.gz]",
    )
    p.add_argument(
        "--objects",
        type=path,
        required=True,
        help="CSV, FITS or VOTable with object_id, ra_deg or ra, dec_deg or dec (deg, or in FITS and VOTable "
        "the column's unit), and, if there, z_spec or z (empty, or -1 and below: unknown), ebv (E(B-V), mag; "
        "empty, or -1 and below: unknown, and the object is left out; without the column it is 0)",
    )
    p.add_argument(
        "--columns",
        nargs="+",
        default=(),
        metavar="OURS=THEIRS",
        help="the table's names for object_id, ra, dec, z_spec, ebv: ra=RAJ2000 dec=DEJ2000",
    )
    p.add_argument(
        "--bands",
        default="ugriz",
        help="such as gri (default ugriz); stamps have the pixel grid of r, or of the first band without r",
    )
    p.add_argument("--stamp", type=int, default=64, help='side of a stamp in pixels of 0.396" (default 64)')
    p.add_argument(
        "--epochs",
        choices=("one", "all"),
        default="one",
        help="one: a stamp per object, with the table's object_id, from the frame in which it is farthest "
        "from the edge (default); all: a stamp from every run that saw it, with object_id * 1000000 + "
        "run, or a hash of both where that exceeds 63 bits (ra and dec still identify the object). The "
        "split is by this id: one galaxy can be in both train and test",
    )
    p.add_argument(
        "--masked-fraction",
        type=number,
        default=MASKED_FRACTION,
        help="skip a stamp with more of its pixels (0 to 1) flagged saturated, cosmic ray or ghost in any "
        f"band (default {MASKED_FRACTION})",
    )
    _add_writing(p, 1024, "largest number of stamps in a shard", _CORES_OR_RANKS)

    p = command(kinds, "table", ingest_table)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.epilog = (
        f"formats, and the fields of their files; N is the number of objects\n\n{describe_formats()}\n\n"
        "A redshift that is NaN, or -1 or below, is unknown; an object whose E(B-V) is not finite, -1 or\n"
        "below, or above 100, is left out. Ids that are whole numbers keep their 64 bits: from 2^63 on they\n"
        "are stored less 2^64. Other text becomes a hash, as the manifest says: ra and dec tell which\n"
        "object it is."
    )
    p.add_argument(
        "out", type=path, help="dataset folder to make; an unfinished one of this ingest is continued"
    )
    p.add_argument(
        "sources", type=path, nargs="+", metavar="SRC", help="files, or folders that are searched recursively"
    )
    p.add_argument(
        "--format",
        required=True,
        choices=tuple(FILE_LAYOUTS),
        help="format of the files: Pasquet et al. 2019, Hayat et al. 2021, GalaxiesML, Multimodal Universe, "
        "ssl-legacysurvey; see below",
    )
    p.add_argument(
        "--crop", type=int, help="keep the central square of this side in pixels (default: whole stamps)"
    )
    p.add_argument(
        "--redshifts",
        type=path,
        help="mmu: CSV, FITS or VOTable with object_id and z_spec or, without it, z (empty, or -1 and below: "
        "unknown), joined by id",
    )
    p.add_argument("--keep-unlabelled", action="store_true", help="mmu: keep objects without a redshift")
    p.add_argument(
        "--zero-point", type=number, help="AB mag, 0 to 40, of one unit of the pixels (default: the format's)"
    )
    p.add_argument("--limit", type=int, help="convert only this many rows")
    _add_writing(p, 8192, "source rows per shard", _CORES_OR_RANKS)

    p = command(commands, "index", index)
    p.add_argument(
        "folder",
        type=path,
        help="folder with shard-*.hdf5 or .h5, of any HDF5 layout, also by gzip, shuffle, fletcher32 or LZF",
    )


def _add_writing(parser: Parser, rows: int, what: str, processes: str) -> None:
    """Add the options on how shards are written: `what` --shard-rows counts, and defaults."""
    parser.add_argument("--shard-rows", type=int, default=rows, help=f"{what} (default {rows})")
    parser.add_argument(
        "--storage",
        choices=STORAGE,
        default=STORAGE[0],
        help="type of the stored pixels (default float32); int16: half the bytes, in steps of 1/32 sky "
        "sigma, wider in pixels above 512 sky sigmas",
    )
    parser.add_argument("--processes", type=int, help=f"worker processes (default: {processes})")
