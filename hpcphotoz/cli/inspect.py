"""The command `inspect`, which shows a dataset."""

import argparse
import json
from typing import Any

from hpcphotoz.cli.parser import Commands, command, path
from hpcphotoz.data.format.manifest import read_manifest


def inspect(options: argparse.Namespace) -> int:
    """Print what a dataset contains; with --verify, check every byte."""
    from hpcphotoz.data.read import rows
    from hpcphotoz.data.read.extra_ranges import extra_ranges

    if options.plot:  # before everything is read
        from hpcphotoz.evaluation.report.gallery import check_plot_path, plot_dataset

        check_plot_path(options.plot)
    manifest = read_manifest(options.dataset, check=not options.verify)
    if options.verify:
        rows.verify(options.dataset, manifest)
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
        "extra": extra_ranges(options.dataset, manifest),
        "provenance": dict(manifest.provenance),
    }
    if options.verify:
        facts["verified"] = True
    if options.plot:
        plot_dataset(options.dataset, manifest, options.plot)
        facts["plot"] = str(options.plot)
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    made = {f"made: {key}": value for key, value in facts.pop("provenance").items()}
    extra = {f"extra: {column['name']}": _describe(column) for column in facts.pop("extra")}
    for name, value in {**facts, **extra, **made}.items():
        print(f"{_printable(name):20s} {_short(value)}")
    return 0


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


def add(commands: Commands) -> None:
    """Add the parser of `inspect`."""
    p = command(commands, "inspect", inspect)
    p.add_argument("dataset", type=path, help="dataset folder")
    p.add_argument("--verify", action="store_true", help="read everything; check checksums and pixels")
    p.add_argument("--plot", type=path, help="plot stamps, n(z), magnitudes and noise into this PNG file")
    p.add_argument("--json", action="store_true", help="print the facts as JSON")
