"""The commands that ask trained networks: attack, evaluate, predict."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, get_args

from hpcphotoz.cli.parser import (
    Commands,
    Parser,
    add_device,
    command,
    count,
    number,
    option,
    path,
    radius,
    seed,
)
from hpcphotoz.config import Attack
from hpcphotoz.config import load as config
from hpcphotoz.data.select.subset import SPLIT_PARTS
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.attack_grid import METHODS, build_attack_grid
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.output import number_of

if TYPE_CHECKING:
    from hpcphotoz.data.select.subset import Subset
    from hpcphotoz.training.run.network import TrainedNetwork


_UNKNOWN = (
    "an object without z_spec is attacked away from the most probable redshift of the network's own clean PDF"
)


def attack(options: argparse.Namespace) -> int:
    """Write an attacked copy of a dataset."""
    from hpcphotoz.evaluation.adversarial_dataset import write_adversarial_dataset
    from hpcphotoz.training.run.network import load_network

    if options.stop and options.precision in ("bf16", "tf32"):
        raise BadInput(
            f"--stop {options.stop:g} with --precision {options.precision}: whether it holds wants float32: "
            "use fp32"
        )
    device = _device(options.device)
    network = load_network(options.run, device)
    bins = {"z_min": network.bins.z_min, "z_max": network.bins.z_max}
    chosen = config.parse({"model": bins, "attack": _attack_options(options)}, "attack").attack
    subset = _subset(options, [network])
    precision = "fp32" if options.stop else _precision(options.precision, network, device)
    count = write_adversarial_dataset(
        network,
        options.data,
        options.out,
        chosen,
        seed=options.seed,
        device=device,
        batch=_batch(device),
        subset=subset,
        precision=precision,
    )
    what = f"{chosen.method} in the {chosen.ball} ball, eps {chosen.eps:g} sky sigma"
    print(f"{options.out}: {number_of(count, 'attacked stamp')}, {what}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Measure runs clean and attacked, and write a report."""
    from hpcphotoz.evaluation.baseline.knn import knn_colours
    from hpcphotoz.evaluation.report.summary import (
        check_report_folder,
        check_run_names,
        print_table,
        write_report,
    )
    from hpcphotoz.evaluation.robustness import evaluate
    from hpcphotoz.training.run.network import load_network

    # Now, and not after the trial of precisions.
    build_attack_grid(
        options.attacks, options.eps, options.headline_eps, steps=options.steps, restarts=options.restarts
    )
    check_report_folder(options.out)
    device = _device(options.device)
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of attacks
    except OSError as error:
        raise BadInput(f"{options.out}: cannot make the folder: {error.strerror}") from None
    networks = [load_network(run, device) for run in options.runs]
    check_run_names([network.name for network in networks])
    subset = _subset(options, networks)
    baseline = None
    if options.knn_train:  # first, for it costs seconds and can refuse its data
        baseline = knn_colours(
            options.knn_train,
            options.data,
            networks[0].bins,
            subset=subset,
            limit=options.limit,
            train_subset=_neighbours(options, networks),
        )
    result = evaluate(
        networks,
        options.data,
        eps=options.eps,
        methods=options.attacks,
        steps=options.steps,
        restarts=options.restarts,
        loss=options.loss,
        headline_eps=options.headline_eps,
        minimal_eps_max=options.minimal_eps,
        device=device,
        limit=options.limit,
        seed=options.seed,
        precision=_precision(options.precision, networks[0], device),
        batch=_batch(device),
        subset=subset,
    )
    tree = write_report(result, options.out, baseline)
    if options.json:
        print(json.dumps(tree, indent=1, allow_nan=False))
    else:
        print_table(result, baseline)
        print(f"{options.out / 'report.html'}, {options.out / 'summary.json'}")
    return 0


def predict(options: argparse.Namespace) -> int:
    """Write redshift PDFs for a catalogue."""
    from hpcphotoz.predict import predict
    from hpcphotoz.training.run.network import load_network

    device = _device(options.device)
    networks = [load_network(run, device) for run in options.runs]
    count = predict(
        networks,
        options.data,
        options.out,
        device=device,
        batch=_batch(device),
        tta=options.tta,
        subset=_subset(options, networks),
    )
    print(f"{options.out}: {number_of(count, 'PDF')}")
    return 0


def _attack_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("method", "ball", "eps", "steps", "step_size", "random_start", "restarts", "loss", "stop")
    chosen = {name: getattr(options, name) for name in names}
    if options.method == "fgsm":  # what it does, for the record
        chosen |= {"steps": 1, "random_start": False}
    for target in ("redshift", "shift"):
        value = getattr(options, f"target_{target}")
        if value is not None:
            chosen |= {"target": target, "target_value": value}
    return chosen


def _subset(options: argparse.Namespace, networks: "list[TrainedNetwork]") -> "Subset":
    """The part and predicate of the command line; a part is that of the runs, their predicate included."""
    from hpcphotoz.data.format.manifest import read_manifest
    from hpcphotoz.data.select.subset import Subset

    splits = [n.config.data.model_dump(include={"validation", "test", "split_seed"}) for n in networks]
    if options.part != "all" and any(split != splits[0] for split in splits):
        raise BadInput(f"--part {options.part}: the runs split the dataset differently: name one at a time")
    manifest = read_manifest(options.data)
    for network in networks:
        own, warning = network.manifest_sha256 == manifest.sha256, ""
        if options.part != "all" and not own:
            warning = f"another dataset than {options.data}: --part is by the object ids of the latter"
        if options.command == "evaluate" and options.part == "all" and not options.where and own:
            warning = f"{options.data}: these figures are of objects it has seen; take --part test"
        if warning:
            print(f"hpcphotoz: warning: run '{network.name}' was trained on {warning}", file=sys.stderr)
    unknown = sum(shard.unlabelled for shard in manifest.shards)
    if unknown and options.command != "predict":
        left_out = ", and metrics leave it out" if options.command == "evaluate" else ""
        print(
            f"hpcphotoz: {options.data}: {unknown} of {manifest.rows} objects have no z_spec: "
            "the most probable redshift of the network's PDF of the clean image stands in for it"
            f"{left_out}",
            file=sys.stderr,
        )
    where = {n.config.data.where for n in networks} if options.part != "all" else set()
    if len(where) > 1:
        raise BadInput(f"--part {options.part}: the runs have different predicates: name one at a time")
    parts = [text for text in (*where, options.where) if text]
    both = " and ".join(f"({text})" for text in parts) if len(parts) > 1 else "".join(parts)
    data = networks[0].config.data.model_copy(update={"where": both})
    return Subset.of(data, options.part, manifest.header.bands)


def _neighbours(options: argparse.Namespace, networks: "list[TrainedNetwork]") -> "Subset":
    """Which objects of --knn-train are neighbours: those that meet the predicate the runs were trained with.

    With --part, of those only the training part. It is by object id: an object of the part that is measured
    is then no neighbour in any copy of the dataset, an attacked one either. --where selects what is measured
    and not the neighbours, for it is not what the networks were trained on.
    """
    from hpcphotoz.data.select.subset import Subset

    if len({network.config.data.where for network in networks}) > 1:
        raise BadInput("--knn-train: the runs were trained with different predicates: name one run at a time")
    return Subset.of(networks[0].config.data, "all" if options.part == "all" else "train", networks[0].bands)


def _device(wanted: str) -> str:
    import torch

    from hpcphotoz.training.distributed.rank_device import choose_device
    from hpcphotoz.world import World

    device = choose_device(World(), wanted)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all batches but the last have one shape
    else:
        keep_freed_memory()
    return device.type


def _precision(asked: str, network: "TrainedNetwork", device: str) -> str:
    """The precision of attacks' gradients on a device, "auto" decided by a short trial; says what and why."""
    from hpcphotoz.compute.precision_trial import precision_of_attacks

    shape = (_batch(device), len(network.bands), network.stamp, network.stamp)
    found, said = precision_of_attacks(asked, network.module, device, shape)
    if said:
        print(f"hpcphotoz: {said}", file=sys.stderr)
    return found


def _batch(device: str) -> int:
    # On a CPU larger tensors are fetched from the system anew each time: 128 took 1.4 times longer.
    return 512 if device == "cuda" else 32


def add(commands: Commands) -> None:
    """Add the parsers of these commands."""
    _add_attack(command(commands, "attack", attack))
    _add_evaluate(command(commands, "evaluate", evaluate))

    p = command(commands, "predict", predict)
    p.add_argument("runs", type=path, nargs="+", metavar="run", help="run folders; several are averaged")
    _add_subset(p)
    add_device(p)
    p.add_argument("--data", type=path, required=True, help="dataset folder")
    p.add_argument("--out", type=path, required=True, help="qp HDF5 file to make, named *.hdf5")
    p.add_argument("--tta", action="store_true", help="average over the eight symmetries of the square")


def _add_attack(p: Parser) -> None:
    p.add_argument("run", type=path, help="run folder, or one checkpoint file")
    _add_subset(p)
    p.add_argument("--data", type=path, required=True, help=f"dataset folder; {_UNKNOWN}")
    p.add_argument("--out", type=path, required=True, help="dataset folder to make, of float32 pixels")
    _add_choice(p, "method", "pgd", "one step; several with projection; APGD, which chooses its step sizes")
    _add_choice(
        p,
        "ball",
        "linf",
        "what --eps bounds, in sky sigmas of each band: linf, the change of every pixel; l2, its root mean "
        "square over pixels and bands; flux, as linf, and the change adds up to 0 in every band",
    )
    p.add_argument(
        "--eps", type=option("attack.eps"), default=0.1, help="radius of the ball in sky sigmas (default 0.1)"
    )
    p.add_argument(
        "--steps", type=option("attack.steps"), default=10, help="steps of PGD and APGD (default 10)"
    )
    p.add_argument(
        "--step-size",
        type=option("attack.step_size"),
        default=0.0,
        help="step of PGD in sky sigmas (default 2.5 eps / steps)",
    )
    p.add_argument(
        "--no-random-start", dest="random_start", action="store_false", help="start at the image itself"
    )
    p.add_argument(
        "--restarts",
        type=option("attack.restarts"),
        default=1,
        help="random starts of PGD and APGD; the best is kept (default 1)",
    )
    _add_loss(p, "what is raised, or lowered for a target")
    target = p.add_mutually_exclusive_group()
    target.add_argument(
        "--target-redshift",
        type=number,
        metavar="Z",
        help="towards this redshift (default: away from z_spec)",
    )
    target.add_argument(
        "--target-shift", type=number, metavar="S", help="towards z_spec + S (1 + z_spec), S of either sign"
    )
    p.add_argument(
        "--stop",
        type=option("attack.stop"),
        default=0.0,
        metavar="F",
        help="a galaxy is done when <z> is further than F (1 + z) from z_spec, or within F (1 + z) of a "
        "target (default 0: none is)",
    )
    _add_precision(p)
    add_device(p)
    p.add_argument("--seed", type=seed, default=0, help="of the random starts (default 0)")


def _add_evaluate(p: Parser) -> None:
    p.add_argument(
        "runs", type=path, nargs="+", metavar="run", help="run folders; names are the folders' names"
    )
    help_text = f"dataset folder; of the one trained on, take --part test; {_UNKNOWN}, and is not scored"
    p.add_argument("--data", type=path, required=True, help=help_text)
    _add_subset(p)
    p.add_argument("--out", type=path, required=True, help="folder for report.html and summary.json")
    p.add_argument(
        "--attacks",
        nargs="+",
        choices=tuple(METHODS),
        default=["fgsm", "pgd"],
        help="flux: PGD that conserves the flux of every band; l2: PGD with a bounded root mean square; each "
        "costs as much again as pgd (default fgsm pgd)",
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
        "--headline-eps", type=radius, default=0.1, help="of summary.json, in sky sigmas (default 0.1)"
    )
    p.add_argument(
        "--steps", type=option("attack.steps"), default=10, help="of all attacks but fgsm (default 10)"
    )
    p.add_argument(
        "--restarts",
        type=option("attack.restarts"),
        default=1,
        help="random starts of all attacks but fgsm; the best is kept (default 1)",
    )
    _add_loss(p, "what attacks raise")
    p.add_argument(
        "--minimal-eps",
        type=radius,
        nargs="?",
        const=1.0,
        metavar="MAX",
        help="also search for the least epsilon that makes each galaxy an outlier, up to MAX sky sigmas "
        "(default 1); as long as up to eleven PGD attacks, more for galaxies that hardly move",
    )
    _add_precision(p)
    add_device(p)
    p.add_argument("--limit", type=count, help="only the first so many objects")
    p.add_argument("--seed", type=seed, default=0, help="of the random starts (default 0)")
    p.add_argument("--json", action="store_true", help="print summary.json instead of the table")
    p.add_argument(
        "--knn-train",
        type=path,
        help="dataset for the nearest-neighbour baseline on aperture colours: its objects that meet the "
        "runs' data.where; with --part, of those the training part of the split",
    )


def _add_choice(parser: Parser, name: str, default: str, text: str) -> None:
    choices = get_args(Attack.model_fields[name].annotation)
    parser.add_argument(f"--{name}", choices=choices, default=default, help=f"{text} (default {default})")


def _add_loss(parser: Parser, what: str) -> None:
    text = f"{what}: cross-entropy over bins, DLR margin, |<z> - z|, CRPS"
    _add_choice(parser, "loss", "cross_entropy", text)


def _add_precision(parser: Parser) -> None:
    help_text = "of the attacks' gradients (default auto: the quickest on this device, by a short trial)"
    choices = ("auto", "fp32", "tf32", "bf16")
    parser.add_argument("--precision", choices=choices, default="auto", help=help_text)


def _add_subset(parser: Parser) -> None:
    parser.add_argument("--where", default="", help="only objects for which this holds: 'z_spec < 0.3'")
    parser.add_argument(
        "--part",
        choices=SPLIT_PARTS,
        default="all",
        help="part of the split the run was trained with (default all)",
    )
