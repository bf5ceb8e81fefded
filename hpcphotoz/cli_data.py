"""The commands that make and show datasets: simulate, ingest, inspect."""

import argparse
import json
from pathlib import Path

from hpcphotoz.cli_parser import Parser, command
from hpcphotoz.errors import BadInput


def simulate(options: argparse.Namespace) -> int:
    """Make labelled galaxies of known redshift."""
    how = {"seed": options.seed, "shard_rows": options.shard_rows, "processes": options.processes}
    if options.onto is not None:
        from hpcphotoz.sources.inject import simulate_onto

        manifest = simulate_onto(options.out, options.n, options.onto, **how)
    else:
        from hpcphotoz.sources.simulate import simulate

        manifest = simulate(options.out, options.n, **how)
    print(f"{options.out}: {manifest.rows} galaxies in {len(manifest.shards)} shards")
    return 0


def ingest_sdss_frames(options: argparse.Namespace) -> int:
    """Cut stamps of real objects out of SDSS frames."""
    from hpcphotoz.sources.frames import MASKED_FRACTION, ingest_frames

    columns = dict(_column(word) for word in options.columns)
    masked = MASKED_FRACTION if options.masked_fraction is None else options.masked_fraction
    manifest = ingest_frames(
        options.out,
        options.frames,
        options.objects,
        stamp=options.stamp,
        shard_rows=options.shard_rows,
        bands=options.bands,
        columns=columns,
        masked_fraction=masked,
        epochs=options.epochs,
        storage=options.storage,
        processes=options.processes,
    )
    print(f"{options.out}: {manifest.rows} stamps in {len(manifest.shards)} shards")
    return 0


def _column(word: str) -> tuple[str, str]:
    key, equals, name = word.partition("=")
    if not (key and equals and name):
        raise BadInput(f"--columns {word}: must be of the form ra=RAJ2000")
    return key, name


def inspect(options: argparse.Namespace) -> int:
    """Say what a dataset holds, and check it byte by byte if asked."""
    from hpcphotoz.data import shards

    manifest = shards.read_manifest(options.dataset)
    if options.verify:
        shards.verify(options.dataset, manifest)
    known = [shard for shard in manifest.shards if shard.z_min is not None]
    facts = {
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "bands": list(manifest.header.bands),
        "stamp_px": manifest.header.stamp,
        "pixel_scale_arcsec": manifest.header.pixel_scale,
        "z_spec_min": min((shard.z_min for shard in known if shard.z_min is not None), default=None),
        "z_spec_max": max((shard.z_max for shard in known if shard.z_max is not None), default=None),
        "unlabelled": sum(shard.unlabelled for shard in manifest.shards),
        "sky_sigma_nmgy": list(manifest.statistics.sky_sigma),
        "pixel_mean_nmgy": list(manifest.statistics.mean),
        "pixel_std_nmgy": list(manifest.statistics.std),
        "provenance": dict(manifest.provenance),
    }
    if options.verify:
        facts["verified"] = True
    if options.plot:
        from hpcphotoz.evaluation.gallery import draw_gallery

        draw_gallery(options.dataset, manifest, options.plot)
        facts["plot"] = str(options.plot)
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        text = (
            ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
            if isinstance(value, list)
            else value
        )
        print(f"{name:20s} {json.dumps(text) if isinstance(text, dict) else text}")
    return 0


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add these commands to the program's."""
    p = command(commands, "simulate", simulate)
    p.add_argument("out", type=Path, help="dataset folder to make")
    p.add_argument("--n", type=int, required=True, help="number of galaxies")
    p.add_argument("--seed", type=int, default=0, help="galaxy k of a seed is always the same (default 0)")
    p.add_argument(
        "--onto",
        type=Path,
        metavar="FRAMES",
        help="put the galaxies into real sky: a folder, searched below too, with SDSS DR7 fpC frames "
        "and their fpM and psField files (default: simulated sky)",
    )
    p.add_argument("--shard-rows", type=int, default=1024, help="galaxies a shard (default 1024)")
    p.add_argument("--processes", type=int, help="processes (default: one a core)")

    p = commands.add_parser("ingest", help="make shards of existing images", allow_abbrev=False)
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    p = command(kinds, "sdss-frames", ingest_sdss_frames)
    p.add_argument("out", type=Path, help="dataset folder to make")
    p.add_argument(
        "--frames",
        type=Path,
        required=True,
        help="folder with SDSS frames, searched below too: fpC-*.fit[.gz] (DR7), frame-*.fits[.bz2] (DR8 and "
        "later), and their mask planes fpM-*.fit[.gz]",
    )
    p.add_argument(
        "--objects",
        type=Path,
        required=True,
        help="CSV, FITS or VOTable with object_id, ra_deg or ra, dec_deg or dec (deg), and, if known, z_spec "
        "or z, ebv (mag)",
    )
    p.add_argument(
        "--columns",
        nargs="+",
        default=(),
        metavar="OURS=THEIRS",
        help="the table's names for object_id, ra, dec, z_spec, ebv: ra=RAJ2000 dec=DEJ2000",
    )
    p.add_argument("--bands", default="ugriz", help="such as gri (default ugriz); r gives the stamps' grid")
    p.add_argument("--stamp", type=int, default=64, help='pixels of 0.396" a side (default 64)')
    p.add_argument(
        "--epochs",
        choices=("one", "all"),
        default="one",
        help="one: a stamp an object, with the table's object_id, from the frame in which it lies farthest "
        "from the edge (default); all: one from every run that saw it, with object_id * 1000000 + run, or a "
        "hash of both where that exceeds 63 bits",
    )
    p.add_argument(
        "--masked-fraction",
        type=float,
        help="skip a stamp with more of its pixels (0 to 1) flagged saturated, cosmic ray or ghost in any "
        "band (default 0.005)",
    )
    p.add_argument("--shard-rows", type=int, default=1024, help="stamps a shard at most (default 1024)")
    p.add_argument(
        "--storage",
        choices=("float32", "float16", "int16"),
        default="float32",
        help="of the images (default float32); int16: in steps of 1/32 of the sky sigma",
    )
    p.add_argument("--processes", type=int, help="processes (default: one a core; under mpiexec its ranks)")

    p = command(commands, "inspect", inspect)
    p.add_argument("dataset", type=Path, help="dataset folder")
    p.add_argument("--verify", action="store_true", help="read everything; check checksums and pixels")
    p.add_argument("--plot", type=Path, help="draw stamps, n(z), magnitudes and noise to this PNG file")
    p.add_argument("--json", action="store_true", help="figures as JSON")
