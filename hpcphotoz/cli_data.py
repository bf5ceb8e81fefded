"""The commands that make and show datasets: simulate, ingest, inspect."""

import argparse
import json
from pathlib import Path

from hpcphotoz.cli_parser import Parser, command


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
    from hpcphotoz.sources.frames import ingest_frames

    manifest = ingest_frames(
        options.out, options.frames, options.objects, stamp=options.stamp, shard_rows=options.shard_rows
    )
    print(f"{options.out}: {manifest.rows} stamps in {len(manifest.shards)} shards")
    return 0


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
        "--frames", type=Path, required=True, help="folder with SDSS fpC frames, searched below too"
    )
    p.add_argument(
        "--objects",
        type=Path,
        required=True,
        help="CSV with object_id, ra_deg, dec_deg; z_spec, ebv if known",
    )
    p.add_argument("--stamp", type=int, default=64, help="pixels a side (default 64)")
    p.add_argument("--shard-rows", type=int, default=1024, help="stamps a shard (default 1024)")

    p = command(commands, "inspect", inspect)
    p.add_argument("dataset", type=Path, help="dataset folder")
    p.add_argument("--verify", action="store_true", help="read everything; check checksums and pixels")
    p.add_argument("--json", action="store_true", help="figures as JSON")
