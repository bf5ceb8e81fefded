"""Commands that make, index and merge datasets: simulate, ingest, index, merge."""

import argparse

from hpcphotoz.cli import arrays, images
from hpcphotoz.cli.dataset_output import (
    CORES_OR_RANKS,
    WRITING,
    add_append,
    add_writing,
    given,
    say_what_is_in,
)
from hpcphotoz.cli.parser import Commands, command, path, seed
from hpcphotoz.output import number_of


def simulate(options: argparse.Namespace) -> int:
    """Simulate galaxies of known redshift and write them as a dataset."""
    how = given(options, "seed", "append", *WRITING)
    if options.onto is not None:
        from hpcphotoz.sources.simulation.inject import simulate_onto

        manifest = simulate_onto(options.out, options.n, options.onto, **how)
    else:
        from hpcphotoz.sources.simulation.simulate import simulate

        manifest = simulate(options.out, options.n, **how)
    say_what_is_in(options.out, manifest, "galaxy", "galaxies")
    return 0


def index(options: argparse.Namespace) -> int:
    """Check shards that another program wrote, and write the manifest that makes them a dataset."""
    from hpcphotoz.data.format.index import index_folder

    manifest = index_folder(options.folder)
    shards = number_of(len(manifest.shards), "shard")
    print(f"{options.folder}: {number_of(manifest.rows, 'object')} in {shards}")
    return 0


def merge(options: argparse.Namespace) -> int:
    """Make one dataset of several with equal bands, stamps, storage and extra columns."""
    from hpcphotoz.data.merge import merge_datasets

    manifest = merge_datasets(options.out, options.datasets, options.verify)
    say_what_is_in(options.out, manifest, "object")
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
    add_append(p)
    add_writing(p, 1024, "galaxies per shard", CORES_OR_RANKS)

    p = commands.add_parser("ingest", help="convert existing images to a dataset", allow_abbrev=False)
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    images.add(kinds)

    arrays.add(kinds)

    p = command(commands, "index", index)
    p.add_argument(
        "folder",
        type=path,
        help="folder with shard-*.hdf5 or .h5, of any HDF5 layout, also by gzip, shuffle, fletcher32 or LZF",
    )

    p = command(commands, "merge", merge)
    p.add_argument("out", type=path, help="dataset folder to make")
    p.add_argument(
        "datasets",
        type=path,
        nargs="+",
        metavar="DATASET",
        help="dataset folders without a common object_id; their shards are hard-linked, or copied where the "
        "file system has no links between the folders",
    )
    p.add_argument("--verify", action="store_true", help="read everything first; check checksums and pixels")
