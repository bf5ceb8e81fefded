"""The command `evaluate`."""

import argparse
import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from hpcphotoz.cli.network_options import (
    UNKNOWN_Z_SPEC,
    add_data,
    add_loss,
    add_no_calibration,
    add_number,
    add_precision,
    add_trust_code,
    batch_size,
    choose_device,
    choose_precision,
    chosen_subset,
    require_data,
    stored_calibration,
)
from hpcphotoz.cli.parser import Commands, add_device, command, count, option, path, radius, seed
from hpcphotoz.cli.reports.measurements import (
    add_measurements,
    check_measurements,
    check_objects,
    measure_further,
)
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.attack_grid import METHODS, QUERIES, build_attack_grid, headline_radius
from hpcphotoz.ranks import Ranks

if TYPE_CHECKING:
    from hpcphotoz.data.select.subset import Subset
    from hpcphotoz.evaluation.scoring.columns import Binning
    from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
    from hpcphotoz.training.run.network import TrainedNetwork


def evaluate(options: argparse.Namespace) -> int:
    """Measure runs clean and attacked, and write a report."""
    from hpcphotoz.atomic import making_folder
    from hpcphotoz.evaluation.baseline.knn import knn_colours
    from hpcphotoz.evaluation.report.bins import KEY, bins_section
    from hpcphotoz.evaluation.report.folder import check_report_folder
    from hpcphotoz.evaluation.report.summary import check_run_names, print_table
    from hpcphotoz.evaluation.report.write import write_report
    from hpcphotoz.evaluation.robustness import evaluate
    from hpcphotoz.training.run.network import load_network

    require_data(options, options.runs)
    # A check of the options before the trial of precisions.
    headline_eps = options.headline_eps or headline_radius(options.eps)
    passes = {"steps": options.steps, "restarts": options.restarts, "queries": options.queries}
    build_attack_grid(options.attacks, options.eps, headline_eps, **passes)
    keys, smoothing = check_measurements(options)
    check_report_folder(options.out)
    device = choose_device(options.device)
    networks = [load_network(run, device, trust_code=options.trust_code) for run in options.runs]
    check_run_names([network.name for network in networks], [KEY, *keys])
    ranks: Ranks = options.ranks
    subset = ranks.on_first_rank(lambda: chosen_subset(options, networks))
    ranks.on_first_rank(lambda: check_objects(options, networks, subset))
    calibrations = ranks.on_first_rank(lambda: _calibrations(options, networks))

    def neighbours() -> dict[str, float] | None:
        if not options.knn_train:
            return None
        which = {"subset": subset, "limit": options.limit, "train_subset": _neighbours(options, networks)}
        return knn_colours(options.knn_train, options.data, networks[0].bins, **which)

    with ExitStack() as stack:
        if ranks.rank == 0:
            stack.enter_context(making_folder(options.out))  # before an hour of attacks
        baseline = ranks.on_first_rank(neighbours)  # first: it takes seconds and may refuse its data
        precision = ranks.on_first_rank(lambda: choose_precision(options.precision, networks[0], device))
        result = evaluate(
            networks,
            options.data,
            eps=options.eps,
            methods=options.attacks,
            **passes,
            loss=options.loss,
            headline_eps=headline_eps,
            minimal_eps_max=options.minimal_eps,
            device=device,
            limit=options.limit,
            seed=options.seed,
            precision=precision,
            batch=batch_size(device),
            subset=subset,
            by=options.by,
            calibrations=calibrations,
            ranks=ranks,
        )
        further = measure_further(options, networks, result, device, smoothing)

        def write() -> dict[str, Any]:
            sections = [one for one in (bins_section(result), *further.sections) if one is not None]
            return write_report(result, options.out, baseline, sections, further.files)

        tree = ranks.on_first_rank(write)
    if options.json:
        print(json.dumps(tree, indent=1, allow_nan=False))
    else:
        print_table(result, baseline)
        print(", ".join(str(options.out / name) for name in ("report.html", "metrics.json", *further.files)))
    for problem in further.problems:
        print(f"hpcphotoz: error: {problem}", file=sys.stderr)
    return 1 if further.problems else 0


def _calibrations(options: argparse.Namespace, networks: "list[TrainedNetwork]") -> "dict[str, Calibration]":
    """The calibration of each run alone, by its name, where the run has one."""
    pairs = zip(networks, options.runs, strict=True)
    found = {network.name: stored_calibration(options, [network], [run]) for network, run in pairs}
    calibrations = {name: one for name, one in found.items() if one is not None}
    if calibrations and options.part == "validation":
        what = "calibrations were fitted to these objects, and look better on them than on others"
        print(f"hpcphotoz: warning: --part validation: {what}: use --part test", file=sys.stderr)
    return calibrations


def _neighbours(options: argparse.Namespace, networks: "list[TrainedNetwork]") -> "Subset":
    """The objects of --knn-train that serve as neighbours: those that meet the predicate of the runs.

    With --part, only those of the training part of the runs' split: an object of the measured part is then no
    neighbour in any copy of the dataset, such as an attacked one. --where, with which the networks were not
    trained, does not apply.
    """
    from hpcphotoz.data.format.manifest import read_manifest
    from hpcphotoz.data.select.subset import Subset

    if len({network.config.data.where for network in networks}) > 1:
        raise BadInput("--knn-train: the runs were trained with different data.where: name one run at a time")
    config, bands = networks[0].config, networks[0].bands
    extra = read_manifest(options.knn_train, check=False).header.extra
    return Subset.from_options(config.data, "all" if options.part == "all" else "train", bands, extra)


def _binning(text: str) -> "Binning":
    from hpcphotoz.evaluation.scoring.columns import Binning

    return Binning.parse(text)


def add(commands: Commands) -> None:
    """Add the parser of `evaluate`."""
    p = command(commands, "evaluate", evaluate)
    names = "run folders; names are the folders' names"
    p.add_argument("runs", type=path, nargs="+", metavar="run", help=names)
    which = f"dataset folder; of the one trained on, take --part test; {UNKNOWN_Z_SPEC}, and is not scored"
    add_data(p, which)
    add_trust_code(p)
    p.add_argument("--out", type=path, required=True, help="folder for report.html, metrics.json and figures")
    p.add_argument(
        "--attacks",
        nargs="+",
        choices=tuple(METHODS),
        default=["fgsm", "pgd"],
        help="square: random search without gradients, of --queries passes; flux: PGD that conserves the "
        "flux of every band; l2: PGD with a bounded root mean square; the last two cost as much again as pgd "
        "each (default fgsm pgd)",
    )
    p.add_argument(
        "--eps",
        type=option("attack.eps"),
        nargs="+",
        default=[0.05, 0.1, 0.2, 0.5],
        help="in sky sigmas: greatest change of a pixel; of l2 the root mean square (default 0.05 0.1 0.2 "
        "0.5)",
    )
    p.add_argument(
        "--headline-eps",
        type=radius,
        help="the epsilon of the tables and pictures, in sky sigmas, attacked too if --eps lacks it "
        "(default: 0.1 if --eps has it, else its median)",
    )
    add_number(p, "steps", 10, "of all attacks but fgsm and square")
    add_number(p, "restarts", 1, "random starts of the same attacks; the best is kept")
    p.add_argument(
        "--queries",
        type=option("attack.steps"),
        default=QUERIES,
        help=f"random squares that square tries, each a forward pass (default {QUERIES})",
    )
    add_loss(p, "what attacks maximise")
    p.add_argument(
        "--minimal-eps",
        type=radius,
        nargs="?",
        const=1.0,
        metavar="MAX",
        help="also search for the minimal epsilon that makes each galaxy an outlier, up to MAX sky sigmas "
        "(default 1); costs up to eleven PGD attacks, more for galaxies that hardly move",
    )
    add_measurements(p)
    p.add_argument(
        "--by",
        type=_binning,
        nargs="+",
        default=(),
        metavar="COLUMN[:EDGE,EDGE,...]",
        help="also measure in bins of these columns of numbers of the dataset, as --where names them, with "
        "the edges given or in fifths of the galaxies; z_spec, aperture_mag (AB), ebv (mag) and aperture_snr "
        "are always there, and may be given other edges",
    )
    add_no_calibration(p, "score the networks' own PDFs")
    add_precision(p)
    add_device(p)
    p.add_argument("--limit", type=count, help="only the first so many objects")
    p.add_argument("--seed", type=seed, default=0, help="of the random starts (default 0)")
    p.add_argument("--json", action="store_true", help="print metrics.json instead of the table")
    p.add_argument(
        "--knn-train",
        type=path,
        help="dataset for the nearest-neighbour baseline on aperture colours: its objects that meet the "
        "runs' data.where; with --part, of those the training part of the split",
    )
