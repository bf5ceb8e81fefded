"""Arguments and checks that the commands attack, predict and evaluate share."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from hpcphotoz.cli.parser import Parser, condition, option, path
from hpcphotoz.config import Attack, Data
from hpcphotoz.data.select.subset import SPLIT_PARTS
from hpcphotoz.errors import BadInput
from hpcphotoz.memory import keep_freed_memory

if TYPE_CHECKING:
    from hpcphotoz.data.select.subset import Subset
    from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
    from hpcphotoz.training.run.network import TrainedNetwork


UNKNOWN_Z_SPEC = (
    "an object without z_spec is attacked away from the most probable redshift of the network's own clean PDF"
)


def choose_device(wanted: str) -> str:
    """Type of the device that --device selects, prepared for inference: "cuda" or "cpu"."""
    import torch

    from hpcphotoz.training.distributed import rank_device
    from hpcphotoz.world import detect

    device = rank_device.choose_device(detect(), wanted)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all batches but the last of a shard have the same shape
    else:
        keep_freed_memory()
    return device.type


def choose_precision(
    wanted: str, network: "TrainedNetwork", device: str, what: str = "gradients of attacks"
) -> str:
    """Precision of `what`; "auto" is decided by a short trial, and the reason is printed."""
    from hpcphotoz.compute.precision import precision_of_attacks

    shape = (batch_size(device), len(network.bands), network.stamp, network.stamp)
    found, reason = precision_of_attacks(wanted, network.module, device, shape, what)
    if reason:
        print(f"hpcphotoz: {reason}", file=sys.stderr)
    return found


def batch_size(device: str, *, gradients: bool = True) -> int:
    """Batch size of inference on a device: with gradients, as attacks take them, or forward passes alone."""
    if device == "cuda":
        return 512
    # Four parts, each in a thread of its own where there are as many: see `ForwardInParts`.
    return 32 if gradients else 128


def require_data(options: argparse.Namespace, runs: Sequence[Path]) -> None:
    """Refuse a command line without --data, and name the datasets on which the runs were trained."""
    from hpcphotoz.provenance import datasets_of

    if options.data is not None:
        return
    found = {run: " and ".join(datasets_of(run)) for run in runs}
    trained = "; ".join(f"{run} was trained on {folders}" for run, folders in found.items() if folders)
    held_back = "" if options.command == "calibrate" else "; --part test takes what was held back"
    unseen = f" ({trained}{held_back})" if trained else ""
    raise BadInput(f"--data is missing: give one dataset folder{unseen}")


def stored_calibration(
    options: argparse.Namespace,
    networks: "list[TrainedNetwork]",
    runs: Sequence[Path],
    tta: bool = False,
) -> "Calibration | None":
    """The calibration that `calibrate` has kept for these networks, which is said; None: --no-calibration."""
    from hpcphotoz.predict.run_calibration import find_calibration

    if options.no_calibration:
        return None
    calibration, note = find_calibration(networks, runs, tta)
    if note:
        print(f"hpcphotoz: {note}{f': {calibration.text()}' if calibration else ''}", file=sys.stderr)
    return calibration


def chosen_subset(options: argparse.Namespace, networks: "list[TrainedNetwork]") -> "Subset":
    """The subset that --part and --where select; a part is that of the runs, and includes their predicate.

    Warnings about the runs' training set and about objects without z_spec are printed.
    """
    from hpcphotoz.data.format.appended import versions_of
    from hpcphotoz.data.format.manifest import read_manifest
    from hpcphotoz.data.read.shard_files import ShardFiles
    from hpcphotoz.data.select.census import count_objects
    from hpcphotoz.data.select.subset import Subset
    from hpcphotoz.evaluation.network import check_bands_and_stamp

    manifest = read_manifest(options.data)
    for network in networks:
        check_bands_and_stamp(network, manifest.header, options.data)
    options_of_split = {"validation", "test", "split_seed", "split_by"}
    splits = [n.config.data.model_dump(include=options_of_split) for n in networks]
    asked = "the validation part" if options.command == "calibrate" else f"--part {options.part}"
    if options.part != "all" and any(split != splits[0] for split in splits):
        raise BadInput(f"{asked}: the runs have different splits: give one run at a time")
    for network in networks:
        trained_on, warning = {network.manifest_sha256, *network.datasets_sha256}, ""
        own = not trained_on.isdisjoint(versions_of(manifest))
        if options.part != "all" and not own:
            by = network.config.data.split_by
            whose = f"whose {by} is in that part of a split by it" if by else "whose ids are in that part"
            warning = f"another dataset: --part takes those objects of {options.data} {whose}"
        if options.command == "evaluate" and options.part == "all" and not options.where and own:
            instead = _part_held_back(network.config.data)
            warning = f"{options.data}: its metrics are of objects seen in training; {instead}"
        if warning:
            print(f"hpcphotoz: warning: run '{network.name}' was trained on {warning}", file=sys.stderr)
    where = {n.config.data.where for n in networks} if options.part != "all" else set()
    if len(where) > 1:
        raise BadInput(f"{asked}: the runs have different data.where: give one run at a time")
    data = networks[0].config.data.model_copy(update={"where": "".join(where)})
    subset = Subset.from_options(
        data, options.part, manifest.header.bands, manifest.header.extra, where=options.where or ""
    )
    if options.command not in ("predict", "calibrate") and any(shard.unlabelled for shard in manifest.shards):
        selected = count_objects(manifest, ShardFiles(options.data, manifest), [subset])[0].census
        if selected.unlabelled:
            left_out = ", and metrics exclude it" if options.command == "evaluate" else ""
            which = "selected objects" if subset.columns else "objects"
            how_many = f"{options.data}: {selected.unlabelled} of {selected.rows} {which} have no z_spec"
            instead = f"the most probable redshift of the network's clean PDF replaces it{left_out}"
            print(f"hpcphotoz: {how_many}: {instead}", file=sys.stderr)
    return subset


def _part_held_back(data: Data) -> str:
    """What to do for metrics of objects that a run has not trained on."""
    if data.test:
        return "use --part test"
    train = "train with --data.test to hold a test part back"
    return f"use --part validation, or {train}" if data.validation else train


def add_choice(parser: Parser, name: str, default: str, text: str) -> None:
    """Add an argument whose choices are those of an option of the `attack` section."""
    choices = get_args(Attack.model_fields[name].annotation)
    parser.add_argument(f"--{name}", choices=choices, default=default, help=f"{text} (default {default})")


def add_number(parser: Parser, name: str, default: float, text: str, metavar: str | None = None) -> None:
    """Add an argument with the range of an option of the `attack` section."""
    help_text, flag = f"{text} (default {default})", f"--{name.replace('_', '-')}"
    parser.add_argument(flag, type=option(f"attack.{name}"), default=default, metavar=metavar, help=help_text)


def add_loss(parser: Parser, what: str) -> None:
    """Add --loss."""
    text = f"{what}: cross-entropy over bins, DLR margin, margin of probabilities (PMA), |<z> - z|, CRPS"
    add_choice(parser, "loss", "cross_entropy", text)


def add_precision(parser: Parser) -> None:
    """Add --precision."""
    help_text = "of the attacks' gradients (default auto: the quickest on this device, by a short trial)"
    choices = ("auto", "fp32", "tf32", "bf16")
    parser.add_argument("--precision", choices=choices, default="auto", help=help_text)


def add_data(parser: Parser, text: str) -> None:
    """Add --data, for which `require_data` asks, and --where and --part, which select of it."""
    parser.add_argument("--data", type=path, help=f"{text} (needed)")
    help_text = "only objects for which this holds: 'z_spec < 0.3'"
    parser.add_argument("--where", type=condition, help=help_text)
    help_text = "part of the split the run was trained with (default all)"
    parser.add_argument("--part", choices=SPLIT_PARTS, default="all", help=help_text)


def add_no_calibration(parser: Parser, what: str) -> None:
    """Add --no-calibration, which `stored_calibration` reads."""
    text = f"{what}; without it, a calibration by `calibrate` is used where the run has one"
    parser.add_argument("--no-calibration", action="store_true", help=text)


def add_trust_code(parser: Parser) -> None:
    """Add --trust-code."""
    help_text = "import and call the package.module:factory that a run or file names, which may do anything"
    parser.add_argument("--trust-code", action="store_true", help=help_text)
