"""The commands `predict` and `calibrate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcphotoz.cli.network_options import (
    add_data,
    add_no_calibration,
    add_trust_code,
    batch_size,
    choose_device,
    choose_precision,
    chosen_subset,
    require_data,
    stored_calibration,
)
from hpcphotoz.cli.parser import Commands, add_device, command, path, radius
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of

if TYPE_CHECKING:
    from hpcphotoz.training.run.network import TrainedNetwork


def predict(options: argparse.Namespace) -> int:
    """Write redshift PDFs for a catalogue."""
    from hpcphotoz.predict import check_points_path, predict

    require_data(options, options.runs)
    if options.points is not None:
        check_points_path(options.points)
    device = choose_device(options.device)
    networks = _networks(options, device)
    subset = options.ranks.on_first_rank(lambda: chosen_subset(options, networks))
    kept = networks, options.runs, options.tta
    calibration = options.ranks.on_first_rank(lambda: stored_calibration(options, *kept))
    how = options.precision, networks[0], device, "PDFs"
    precision = options.ranks.on_first_rank(lambda: choose_precision(*how))
    count = predict(
        networks,
        options.data,
        options.out,
        batch=batch_size(device, gradients=False),
        device=device,
        tta=options.tta,
        calibration=calibration,
        form=options.pdf,
        points=options.points,
        flag_below=options.flag_below,
        precision=precision,
        subset=subset,
        ranks=options.ranks,
    )
    written = f"{options.out}: {number_of(count, 'PDF')}"
    print(written if options.points is None else f"{written}; {options.points}: {number_of(count, 'row')}")
    return 0


def calibrate(options: argparse.Namespace) -> int:
    """Fit the calibration of a run's PDFs, or of an ensemble's, on the validation part of its split."""
    from hpcphotoz.predict import calibrate
    from hpcphotoz.predict.fit import MIN_OBJECTS
    from hpcphotoz.predict.run_calibration import FILE

    if options.data is None:
        options.data = _own_dataset(options.runs)
    require_data(options, options.runs)
    device = choose_device(options.device)
    networks = _networks(options, device)
    if options.stack and len(networks) < 2:
        raise BadInput("--stack: weighs several runs: give two or more")
    for network in networks:
        if not network.config.data.validation:
            raise BadInput(
                f"run '{network.name}': its split has no validation part (data.validation is 0), to which a "
                f"calibration is fitted: train a new run with --data.validation 0.1, or more where that is "
                f"fewer than {MIN_OBJECTS} galaxies"
            )
    found = calibrate(
        networks,
        options.runs,
        options.data,
        subset=chosen_subset(options, networks),
        method=options.method,
        stack=options.stack,
        tta=options.tta,
        batch=batch_size(device, gradients=False),
        device=device,
    )
    score = f"log score {found.score_before:.3f} before, {found.score:.3f} after (cross-validated)"
    distance = f"KS of the PIT {found.pit_ks_before:.3f} before, {found.pit_ks:.3f} after (of the fit)"
    print(f"{options.runs[0] / FILE}: {found.calibration.text()}; {score}; {distance}")
    return 0


def _networks(options: argparse.Namespace, device: str) -> "list[TrainedNetwork]":
    from hpcphotoz.training.run.network import load_network

    resolved = [run.resolve() for run in options.runs]
    if twice := [run for run in options.runs if resolved.count(run.resolve()) > 1]:
        raise BadInput(f"{twice[0]}: given twice, and would count twice in the mean: name each run once")
    return [load_network(run, device, trust_code=options.trust_code) for run in options.runs]


def _own_dataset(runs: Sequence[Path]) -> Path | None:
    """The dataset on which all runs were trained; None: there are several, or it is not there any more."""
    from hpcphotoz.provenance import datasets_of

    found = {folder for run in runs for folder in datasets_of(run)}
    only = Path(found.pop()) if len(found) == 1 else None
    return only if only and only.is_dir() else None


def add(commands: Commands) -> None:
    """Add the parsers of these commands."""
    p = command(commands, "predict", predict)
    p.refused["--stack"] = "belongs to calibrate, which finds the weights of the runs; predict then uses them"
    p.add_argument("runs", type=path, nargs="+", metavar="run", help="run folders; several are averaged")
    add_trust_code(p)
    add_device(p)
    add_data(p, "dataset folder")
    out = "qp HDF5 file to make, *.hdf5; replaces one that exists"
    p.add_argument("--out", type=path, required=True, help=out)
    p.add_argument("--tta", action="store_true", help="average over the eight symmetries of the square")
    add_no_calibration(p, "do not calibrate PDFs")
    text = "densities that are constant in a bin, or linear between the bins' centres (default hist)"
    p.add_argument("--pdf", choices=("hist", "interp"), default="hist", help=text)
    text = "also write the point estimates as a new table: *.fits, *.parquet or *.csv"
    p.add_argument("--points", type=path, metavar="FILE", help=text)
    p.add_argument(
        "--flag-below",
        type=radius,
        metavar="EPS",
        help="also search for the minimal epsilon that moves <z> of a run by 0.05 (1 + <z>), up to EPS sky "
        "sigmas, and flag the objects that have one; costs some tens of PGD attacks",
    )

    p.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        default="fp32",
        help="of the networks' passes; auto: the quickest on this device, by a short trial (default fp32)",
    )

    p = command(commands, "calibrate", calibrate)
    p.refused["--where"] = (
        "calibrate takes all objects of the validation part, with the training's data.where"
    )
    several = "run folders; several: of the mean of their PDFs, kept in the first one's folder"
    p.add_argument("runs", type=path, nargs="+", metavar="run", help=several)
    add_trust_code(p)
    add_device(p)
    text = "dataset folder, whose objects in the validation part of the split are used (default: that of the "
    p.add_argument("--data", type=path, help=f"{text}training)")
    p.set_defaults(part="validation", where=None)
    p.add_argument("--tta", action="store_true", help="for predictions with --tta")
    text = "weigh the runs by their log score (stacking); without it, all count the same"
    p.add_argument("--stack", action="store_true", help=text)
    text = (
        "a temperature, a map of the CDF by the distribution of the PIT, or what predicts best (default auto)"
    )
    p.add_argument("--method", choices=("auto", "temperature", "pit"), default="auto", help=text)
