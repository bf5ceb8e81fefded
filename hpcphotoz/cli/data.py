"""Commands that make and index datasets: simulate, ingest, index."""

import argparse

from hpcphotoz.cli import images
from hpcphotoz.cli.dataset_output import CORES_OR_RANKS, WRITING, add_writing, given, say_what_is_in
from hpcphotoz.cli.parser import Commands, command, number, path, seed
from hpcphotoz.output import number_of
from hpcphotoz.sources.published.file_layouts import FILE_LAYOUTS, describe_formats


def simulate(options: argparse.Namespace) -> int:
    """Simulate galaxies of known redshift and write them as a dataset."""
    how = given(options, "seed", *WRITING)
    if options.onto is not None:
        from hpcphotoz.sources.simulation.inject import simulate_onto

        manifest = simulate_onto(options.out, options.n, options.onto, **how)
    else:
        from hpcphotoz.sources.mpi import refuse_ranks
        from hpcphotoz.sources.simulation.simulate import simulate

        refuse_ranks("simulate without --onto uses the cores of one machine: start one process")
        manifest = simulate(options.out, options.n, **how)
    say_what_is_in(options.out, manifest, "galaxy", "galaxies")
    return 0


def ingest_table(options: argparse.Namespace) -> int:
    """Convert a published set of HDF5 or npz files to a dataset."""
    from hpcphotoz.sources.build import count_skipped
    from hpcphotoz.sources.published.ingest_table import ingest_table

    how = given(options, "crop", "redshifts", "keep_unlabelled", "zero_point", "limit", *WRITING)
    manifest, skipped = ingest_table(options.out, options.sources, options.format, **how)
    left_out = count_skipped(skipped)
    more = f"; left out {left_out}, listed in {options.out / 'manifest.json'}" if left_out else ""
    say_what_is_in(options.out, manifest, "stamp", more=more)
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
    add_writing(p, 1024, "galaxies per shard", "one per core")

    p = commands.add_parser("ingest", help="convert existing images to a dataset", allow_abbrev=False)
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    images.add(kinds)

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
    add_writing(p, 8192, "source rows per shard", CORES_OR_RANKS)

    p = command(commands, "index", index)
    p.add_argument(
        "folder",
        type=path,
        help="folder with shard-*.hdf5 or .h5, of any HDF5 layout, also by gzip, shuffle, fletcher32 or LZF",
    )
