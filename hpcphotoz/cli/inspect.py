"""The command `inspect`, which shows a dataset or a run."""

import argparse
import json
from typing import Any

from hpcphotoz.cli.parser import Commands, command, number, path
from hpcphotoz.cli.runs.summary import inspect_run
from hpcphotoz.data.format.manifest import MANIFEST, find_shards, read_manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of


def inspect(options: argparse.Namespace) -> int:
    """Print what a dataset contains, with --verify check every byte; or summarise a run."""
    folder = options.folder
    if (folder / "config.toml").exists() and not (folder / MANIFEST).exists():
        return inspect_run(options)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder: give that of a dataset or of a run")
    if not (folder / MANIFEST).exists() and not find_shards(folder):
        raise BadInput(
            f"{folder}: holds neither a dataset ({MANIFEST}) nor a run (config.toml): name the folder of one"
        )
    return _inspect_dataset(options)


def _inspect_dataset(options: argparse.Namespace) -> int:
    from hpcphotoz.atomic import check_output_file
    from hpcphotoz.data.read import rows
    from hpcphotoz.data.read.extra_ranges import extra_ranges
    from hpcphotoz.data.select.duplicates import check_groups_file, find_duplicates

    if options.plot:  # before everything is read
        from hpcphotoz.evaluation.report.pictures.gallery import check_plot_path, plot_dataset

        check_plot_path(options.plot)
    if options.out and options.duplicates is None:
        raise BadInput(f"--out {options.out}: holds the groups of duplicates: give --duplicates ARCSEC too")
    if options.out:
        check_output_file(options.out)
        check_groups_file(options.out)
    manifest = read_manifest(options.folder, check=not options.verify)
    if options.verify:
        rows.verify(options.folder, manifest)
    facts: dict[str, Any] = {
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "bands": list(manifest.header.bands),
        "stamp_px": manifest.header.stamp,
        "pixel_scale_arcsec": manifest.header.pixel_scale,
        "storage": manifest.header.storage,
        "z_spec_min": min((s.z_min for s in manifest.shards if s.z_min is not None), default=None),
        "z_spec_max": max((s.z_max for s in manifest.shards if s.z_max is not None), default=None),
        "unlabelled": sum(shard.unlabelled for shard in manifest.shards),
        "sky_sigma_nmgy": list(manifest.statistics.sky_sigma),
        "pixel_mean_nmgy": list(manifest.statistics.mean),
        "pixel_std_nmgy": list(manifest.statistics.std),
        "extra": extra_ranges(options.folder, manifest),
        "provenance": dict(manifest.provenance),
    }
    if options.verify:
        facts["verified"] = True
    if options.plot:
        plot_dataset(options.folder, manifest, options.plot)
        facts["plot"] = str(options.plot)
    if options.duplicates is not None:
        duplicates = find_duplicates(options.folder, manifest, options.duplicates)
        if options.out:
            duplicates.write_groups(options.out)
        facts["duplicates"] = duplicates.facts()
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    made = {f"made: {key}": value for key, value in facts.pop("provenance").items()}
    appended = manifest.provenance.get("appended")
    for k, one in enumerate(appended if isinstance(appended, list) else (), 1):
        if isinstance(one, dict) and "zero_point_ab" in one:
            made[f"append {k}: zero_point_ab"] = one["zero_point_ab"]
    extra = {f"extra: {column['name']}": _describe(column) for column in facts.pop("extra")}
    found = facts.pop("duplicates", None)
    for name, value in {**facts, **extra, **made}.items():
        print(f"{_printable(name):20s} {_short(value)}")
    if found:
        print("\n".join(_describe_duplicates(found)))
    if options.out:
        print(f"{options.out}: object_id and group of every object")
    return 0


def _describe_duplicates(found: dict[str, Any]) -> list[str]:
    """Duplicates in words: the numbers in a line, then the first pairs in one each."""
    pairs = number_of(found["pairs"], "pair")
    sizes = ", ".join(f"{n} of {size}" for size, n in found["group_sizes"].items())
    words = [f"{pairs} closer than {found['arcsec']:g} arcsec", number_of(found["groups"], "group")]
    if sizes:
        words[-1] += f" ({sizes} objects)"
    if found["objects_without_position"]:
        words.append(f"{number_of(found['objects_without_position'], 'object')} without a position")
    lines = [f"{'duplicates':20s} {', '.join(words)}"]
    for pair in found["first_pairs"]:
        one, other = pair["object_id"]
        delta = "unknown" if pair["delta_z"] is None else f"{pair['delta_z']:+.5f}"
        lines.append(f"{'':20s} {one} and {other}: {pair['arcsec']:.4f} arcsec, delta z {delta}")
    if found["pairs"] > len(found["first_pairs"]):
        lines.append(f"{'':20s} ... and {found['pairs'] - len(found['first_pairs'])} more")
    return lines


def _describe(column: dict[str, Any]) -> str:
    """An extra column in words: type, unit, values."""
    per = {"variance": " a pixel", "mask": ", one bit a pixel"}.get(column["name"])
    words = [column["dtype"] + (per or " a band" if column["shape"] else "")]
    if column["unit"]:
        words.append(column["unit"])
    if column.get("min") is not None:
        words.append(f"{column['min']:.6g} to {column['max']:.6g}")
    if column.get("unknown"):
        words.append(f"{column['unknown']} unknown")
    if "true" in column:
        words.append(f"{column['true']} true")
    if "values" in column:
        counts = column["values"]
        words += (
            ["many values"] if counts is None else [f"{n} {text or '(empty)'}" for text, n in counts.items()]
        )
    return ", ".join(words)


def _short(value: Any) -> str:
    """A value shortened to one line; `--json` prints it in full."""
    if isinstance(value, list) and all(isinstance(v, int | float | str) for v in value):
        text = ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    text = _printable(text)
    return text if len(text) <= 100 else f"{text[:90]} ... ({len(text)} characters)"


def _printable(text: str) -> str:
    """A text, quoted if it has control characters, which a terminal would obey: manifests may be foreign."""
    return text if text.isprintable() else json.dumps(text)


def _separation(text: str) -> float:
    """Parse a separation on the sky in arcsec."""
    value = number(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and at most 3600 arcsec")
    return value


def add(commands: Commands) -> None:
    """Add the parser of `inspect`."""
    p = command(commands, "inspect", inspect)
    p.add_argument("folder", type=path, metavar="DATASET|RUN", help="dataset folder, or run folder")
    p.add_argument("--verify", action="store_true", help="read everything; check checksums and pixels")
    p.add_argument(
        "--plot",
        type=path,
        help="plot stamps, n(z), magnitudes and noise into this PNG file; of a run, its curves",
    )
    p.add_argument(
        "--duplicates",
        type=_separation,
        metavar="ARCSEC",
        help="find pairs of objects closer than this on the sky (above 0, at most 3600), and list the first",
    )
    p.add_argument(
        "--out",
        type=path,
        metavar="FILE.csv",
        help="with --duplicates: write every object's id and group, a column for train --split-by",
    )
    p.add_argument("--json", action="store_true", help="print the facts as JSON")
