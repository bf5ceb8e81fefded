"""The command line: one thin function a command."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcphotoz import __version__, cli_data, config
from hpcphotoz.cli_parser import Parser, command
from hpcphotoz.data.subset import PARTS
from hpcphotoz.errors import BadInput

if TYPE_CHECKING:
    from hpcphotoz.data.subset import Subset
    from hpcphotoz.training.checkpoint import Network


def run(arguments: Sequence[str]) -> int:
    """Parse a command line and run its command; returns the exit status.

    Raises:
        BadInput: words that are not understood, or what a command cannot use.
    """
    words, after = list(arguments), None
    if words[:1] == ["launch"] and "--" in words:
        cut = words.index("--")
        words, after = words[:cut], words[cut + 1 :]
    options, rest = _parser().parse_known_args(words)
    if rest and options.command != "train":
        raise BadInput(f"{' '.join(rest)}: not understood (see hpcphotoz {options.command} --help)")
    options.rest, options.after = rest, after
    status: int = options.function(options)
    return status


def train(options: argparse.Namespace) -> int:
    """Train one network on this process's share of the ranks."""
    from hpcphotoz.training.trainer import Diverged, train

    settings = config.load(options.config, _overrides(options))
    try:
        train(settings, options.data, options.out)
    except Diverged as error:
        print(f"hpcphotoz: error: {error}", file=sys.stderr)
        return 1
    return 0


def attack(options: argparse.Namespace) -> int:
    """Write an attacked copy of a dataset."""
    from hpcphotoz.evaluation.adversarial import write_adversarial
    from hpcphotoz.training.checkpoint import load_network

    chosen = config.parse({"attack": _attack_options(options)}, "attack").attack
    device = _device()
    network = load_network(options.run, device)
    count = write_adversarial(
        network,
        options.data,
        options.out,
        chosen,
        seed=options.seed,
        device=device,
        batch=_batch(device),
        subset=_subset(options, [network]),
    )
    print(f"{options.out}: {count} attacked stamps, {chosen.method}, eps {chosen.eps:g} sky sigma")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Measure runs clean and attacked, and write a report."""
    from hpcphotoz.evaluation.baseline import knn_colours
    from hpcphotoz.evaluation.report import print_table, write_report
    from hpcphotoz.evaluation.robustness import evaluate
    from hpcphotoz.training.checkpoint import load_network

    for name, what in (("manifest.json", "a dataset"), ("checkpoints", "a run")):
        if (options.out / name).exists():
            raise BadInput(f"{options.out}: is {what}: choose another folder for the report")
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of attacks
    except OSError as error:
        raise BadInput(f"{options.out}: cannot make the folder: {error.strerror}") from None
    device = _device()
    networks = [load_network(run, device) for run in options.runs]
    subset = _subset(options, networks)
    baseline = None
    if options.knn_train:  # first, for it costs seconds and can refuse its data
        baseline = knn_colours(
            options.knn_train,
            options.data,
            networks[0].bins,
            subset=subset,
            limit=options.limit,
            among=_neighbours(options, networks),
        )
    result = evaluate(
        networks,
        options.data,
        eps=options.eps,
        methods=options.attacks,
        steps=options.steps,
        loss=options.loss,
        headline_eps=options.headline_eps,
        device=device,
        limit=options.limit,
        seed=options.seed,
        precision=options.precision,
        batch=_batch(device),
        subset=subset,
    )
    tree = write_report(result, options.out, baseline)
    if options.json:
        print(json.dumps(tree, indent=1))
    else:
        print_table(result, baseline)
        print(f"{options.out / 'report.html'}, {options.out / 'summary.json'}")
    return 0


def predict(options: argparse.Namespace) -> int:
    """Write redshift PDFs for a catalogue."""
    from hpcphotoz.predict import predict
    from hpcphotoz.training.checkpoint import load_network

    device = _device()
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
    print(f"{options.out}: {count} PDFs")
    return 0


def launch(options: argparse.Namespace) -> int:
    """Run `train` on a cluster, or here with one process a rank: launch [...] -- train CONFIG --data D --out
    RUN.
    """
    from dataclasses import fields

    from hpcphotoz.launch import slurm
    from hpcphotoz.launch.job import TrainJob

    if not options.after or options.after[0] != "train":
        raise BadInput(
            "launch: give the run after `--`, e.g. launch slurm --nodes 2 -- train CONFIG --data D --out RUN"
        )
    words, rest = _parser().parse_known_args(options.after)
    words.rest = rest
    job = TrainJob.of(config.load(words.config, _overrides(words)), words.data, words.out)
    given = {field.name: getattr(options, field.name) for field in fields(slurm.LaunchPlan)}
    chosen: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None
    }
    plan = slurm.LaunchPlan(**chosen)
    if options.dry_run:
        if options.where == "local":
            raise BadInput(
                "launch local --dry-run: nothing to show; `launch slurm --dry-run` prints the sbatch script"
            )
        print(slurm.dry_run(plan, job), end="")
        return 0
    if options.where == "local":
        return slurm.run_local(plan, job)
    submitted = slurm.submit(plan, job)
    print(f"job {submitted.job_id}, logs in {submitted.logs}/{submitted.job_id}_<rank>_log.out")
    return 0


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    given = {name: value for name, value in vars(options).items() if "." in name}
    rest = list(options.rest)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or not (equals or rest):
            raise BadInput(f"{word}: not understood; options of the configuration are --section.key value")
        given[name[2:]] = value if equals else rest.pop(0)
    return given


def _attack_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("method", "eps", "steps", "step_size", "random_start", "loss")
    return {name: getattr(options, name) for name in names}


def _subset(options: argparse.Namespace, networks: "list[Network]") -> "Subset":
    """The part and predicate of the command line; a part is that of the runs, their predicate included."""
    from hpcphotoz.data.shards import read_manifest
    from hpcphotoz.data.subset import Subset

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
    where = {n.config.data.where for n in networks} if options.part != "all" else set()
    if len(where) > 1:
        raise BadInput(f"--part {options.part}: the runs have different predicates: name one at a time")
    parts = [text for text in (*where, options.where) if text]
    both = " and ".join(f"({text})" for text in parts) if len(parts) > 1 else "".join(parts)
    data = networks[0].config.data.model_copy(update={"where": both})
    return Subset.of(data, options.part, manifest.header.bands)


def _neighbours(options: argparse.Namespace, networks: "list[Network]") -> "Subset":
    """Which objects of --knn-train are neighbours: those that meet the predicate the runs were trained with.

    With --part, of those only the training part. It is by object id: an object of the part that is measured
    is then no neighbour in any copy of the dataset, an attacked one either. --where selects what is measured
    and not the neighbours, for it is not what the networks were trained on.
    """
    from hpcphotoz.data.subset import Subset

    if len({network.config.data.where for network in networks}) > 1:
        raise BadInput("--knn-train: the runs were trained with different predicates: name one run at a time")
    return Subset.of(networks[0].config.data, "all" if options.part == "all" else "train", networks[0].bands)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _batch(device: str) -> int:
    # On a CPU larger tensors are fetched from the system anew each time: 128 took 1.4 times longer.
    return 512 if device == "cuda" else 32


def _parser() -> Parser:
    parser = Parser(
        prog="hpcphotoz", description="Adversarially trained photometric redshifts.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hpcphotoz {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    cli_data.add(commands)

    p = command(commands, "train", train)
    p.add_argument("config", help=f"TOML file, or a recipe: {', '.join(config.recipes())}")
    p.add_argument("--data", type=Path, required=True, help="dataset folder")
    p.add_argument("--out", type=Path, required=True, help="run folder; one that holds this run is resumed")
    p.add_argument("--where", dest="data.where", default=argparse.SUPPRESS, help="short for --data.where")
    group = p.add_argument_group("configuration (overrides the TOML file)")
    for name, (default, text) in config.options().items():
        help_text = f"{text} (default {default})".replace("%", "%%")
        group.add_argument(f"--{name}", dest=name, default=argparse.SUPPRESS, metavar="X", help=help_text)

    p = command(commands, "attack", attack)
    p.add_argument("run", type=Path, help="run folder, or one checkpoint file")
    _add_subset(p)
    p.add_argument("--data", type=Path, required=True, help="dataset folder")
    p.add_argument("--out", type=Path, required=True, help="dataset folder to make, of float32 pixels")
    p.add_argument("--method", choices=("fgsm", "pgd"), default="pgd", help="attack (default pgd)")
    p.add_argument(
        "--eps", type=float, default=0.1, help="L-infinity radius in sky sigmas of each band (default 0.1)"
    )
    p.add_argument("--steps", type=int, default=10, help="PGD steps (default 10)")
    p.add_argument(
        "--step-size", type=float, default=0.0, help="step in sky sigmas (default 2.5 eps / steps)"
    )
    p.add_argument(
        "--no-random-start", dest="random_start", action="store_false", help="start at the image itself"
    )
    p.add_argument(
        "--loss", choices=("cross_entropy", "shift"), default="cross_entropy", help="what the attack raises"
    )
    p.add_argument("--seed", type=int, default=0, help="of the random starts (default 0)")

    p = command(commands, "evaluate", evaluate)
    p.add_argument(
        "runs", type=Path, nargs="+", metavar="run", help="run folders; names are the folders' names"
    )
    help_text = "dataset folder; of the one trained on, take --part test"
    p.add_argument("--data", type=Path, required=True, help=help_text)
    _add_subset(p)
    p.add_argument("--out", type=Path, required=True, help="folder for report.html and summary.json")
    p.add_argument(
        "--attacks", nargs="+", choices=("fgsm", "pgd"), default=["fgsm", "pgd"], help="default: both"
    )
    p.add_argument(
        "--eps",
        type=float,
        nargs="+",
        default=[0.05, 0.1, 0.2, 0.5],
        help="in sky sigmas (default 0.05 0.1 0.2 0.5)",
    )
    p.add_argument(
        "--headline-eps", type=float, default=0.1, help="of summary.json, in sky sigmas (default 0.1)"
    )
    p.add_argument("--steps", type=int, default=10, help="PGD steps (default 10)")
    p.add_argument(
        "--loss", choices=("cross_entropy", "shift"), default="cross_entropy", help="what attacks raise"
    )
    p.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the attacks' gradients (default fp32)",
    )
    p.add_argument("--limit", type=int, help="only the first so many objects")
    p.add_argument("--seed", type=int, default=0, help="of the random starts (default 0)")
    p.add_argument("--json", action="store_true", help="print summary.json instead of the table")
    p.add_argument(
        "--knn-train",
        type=Path,
        help="dataset for the nearest-neighbour baseline on aperture colours: its objects that meet the "
        "runs' data.where; with --part, of those the training part of the split",
    )

    p = command(commands, "predict", predict)
    p.add_argument("runs", type=Path, nargs="+", metavar="run", help="run folders; several are averaged")
    _add_subset(p)
    p.add_argument("--data", type=Path, required=True, help="dataset folder")
    p.add_argument("--out", type=Path, required=True, help="qp HDF5 file to make")
    p.add_argument("--tta", action="store_true", help="average over the eight symmetries of the square")

    p = command(commands, "launch", launch)
    p.add_argument(
        "where", choices=("local", "slurm"), help="local: this machine; slurm: sbatch, one task a rank"
    )
    p.add_argument("--nodes", type=int, help="nodes (default 1)")
    p.add_argument("--tasks-per-node", type=int, help="ranks a node (default: one a GPU, or one)")
    p.add_argument("--gpus-per-node", type=int, help="GPUs a node (default 0: train on CPUs)")
    p.add_argument("--cpus-per-task", type=int, help="CPUs a rank (default 2)")
    p.add_argument("--mem-gb", type=float, help="memory a node in GB (default: the partition's)")
    p.add_argument(
        "--time-minutes", type=int, help="time limit in minutes (default 60); a run goes on after it"
    )
    p.add_argument(
        "--signal-delay-s", type=int, help="seconds before the limit at which to save (default 120)"
    )
    p.add_argument("--max-requeues", type=int, help="restarts after time limits and preemptions (default 10)")
    for name in ("partition", "account", "qos", "constraint", "exclude", "job-name"):
        p.add_argument(f"--{name}", help=f"Slurm's {name}")
    p.add_argument(
        "--setup", action="append", help="a shell line before the start, e.g. 'module load cuda'; repeatable"
    )
    p.add_argument("--extra", action="append", help="a further sbatch option, key=value or key; repeatable")
    p.add_argument("--dry-run", action="store_true", help="print the sbatch script; submit and write nothing")
    return parser


def _add_subset(parser: Parser) -> None:
    parser.add_argument("--where", default="", help="only objects for which this holds: 'z_spec < 0.3'")
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="all",
        help="part of the split the run was trained with (default all)",
    )
