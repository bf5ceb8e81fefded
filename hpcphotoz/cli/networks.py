"""The commands `attack`, `export` and `import-weights`, of trained networks."""

import argparse
from typing import Any

from hpcphotoz.cli.network_options import (
    UNKNOWN_Z_SPEC,
    add_choice,
    add_data,
    add_loss,
    add_number,
    add_precision,
    add_trust_code,
    batch_size,
    choose_device,
    choose_precision,
    chosen_subset,
    require_data,
)
from hpcphotoz.cli.parser import Commands, Parser, add_device, command, number, path, seed
from hpcphotoz.config import load as config
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of


def attack(options: argparse.Namespace) -> int:
    """Write an attacked copy of a dataset."""
    from hpcphotoz.data.format.folder import check_dataset_folder
    from hpcphotoz.evaluation.adversarial_dataset import write_adversarial_dataset
    from hpcphotoz.training.run.network import load_network

    if options.stop and options.precision in ("bf16", "tf32"):
        both = f"--stop {options.stop:g} with --precision {options.precision}"
        raise BadInput(f"{both}: the stop condition needs float32: use --precision fp32")
    require_data(options, [options.run])
    check_dataset_folder(options.out)
    device = choose_device(options.device)
    network = load_network(options.run, device, trust_code=options.trust_code)
    bins = {"z_min": network.bins.z_min, "z_max": network.bins.z_max}
    chosen = config.parse({"model": bins, "attack": _attack_options(options)}, "attack").attack
    subset = chosen_subset(options, [network])
    precision = "fp32" if options.stop else choose_precision(options.precision, network, device)
    how = {"seed": options.seed, "device": device, "batch": batch_size(device), "precision": precision}
    count = write_adversarial_dataset(network, options.data, options.out, chosen, subset=subset, **how)
    what = f"{chosen.method} in the {chosen.ball} ball, eps {chosen.eps:g} sky sigma"
    print(f"{options.out}: {number_of(count, 'attacked stamp')}, {what}")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a network as safetensors, as a program of torch.export or as ONNX, with a card beside it."""
    from hpcphotoz.training.run.export import card_of, export

    network = export(options.run, options.out, options.report, trust_code=options.trust_code)
    what = f"{network.config.model.name} of {network.name} at step {network.step}"
    print(f"{options.out}: {what}; {card_of(options.out)}")
    return 0


def import_weights(options: argparse.Namespace) -> int:
    """Make a run folder of the weights of Campagne's or Pasquet's public code."""
    from hpcphotoz.training.run.import_weights import import_weights

    found = import_weights(options.file, options.out)
    ebv = "with" if found.with_ebv else "without"
    network = f"{found.model.name} {ebv} E(B-V), {found.model.bins} bins"
    print(f"{options.out}: the weights of {found.code.capitalize()}'s {network}")
    return 0


def _attack_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("method", "ball", "eps", "steps", "step_size", "random_start", "restarts", "loss", "stop")
    chosen = {name: getattr(options, name) for name in names}
    if options.method == "fgsm":  # recorded as it is
        chosen |= {"steps": 1, "random_start": False}
    for target in ("redshift", "shift"):
        value = getattr(options, f"target_{target}")
        if value is not None:
            chosen |= {"target": target, "target_value": value}
    return chosen


def add(commands: Commands) -> None:
    """Add the parsers of these commands."""
    _add_attack(command(commands, "attack", attack))

    p = command(commands, "export", export)
    p.add_argument("run", type=path, help="run folder, one checkpoint file, or a file *.safetensors")
    add_trust_code(p)
    kinds = "*.safetensors (hpcphotoz.load reads it), *.pt2 (torch.export) or *.onnx"
    p.add_argument("out", type=path, metavar="OUT", help=f"file to make: {kinds}; its card is OUT.json")
    card = "report of `evaluate` on this run, whose metrics and robustness curves the card takes"
    p.add_argument("--report", type=path, metavar="DIR", help=card)

    p = command(commands, "import-weights", import_weights)
    kinds = "state dict of torch (*.pt, *.pth), or arrays under their names in the code (*.npz)"
    p.add_argument("file", type=path, metavar="FILE", help=kinds)
    p.add_argument("--out", type=path, required=True, metavar="RUN", help="run folder to make")


def _add_attack(p: Parser) -> None:
    p.add_argument("run", type=path, help="run folder, or one checkpoint file")
    add_trust_code(p)
    add_data(p, f"dataset folder; {UNKNOWN_Z_SPEC}")
    p.add_argument("--out", type=path, required=True, help="dataset folder to make, of float32 pixels")
    add_choice(
        p,
        "method",
        "pgd",
        "one step; several with projection; APGD, which chooses its step sizes; random search, black-box",
    )
    add_choice(
        p,
        "ball",
        "linf",
        "what --eps bounds, in sky sigmas of each band: linf, the change of every pixel; l2, its root mean "
        "square over pixels and bands; flux, as linf, and the change adds up to 0 in every band",
    )
    add_number(p, "eps", 0.1, "radius of the ball in sky sigmas")
    add_number(p, "steps", 10, "steps of PGD and APGD, queries of square (1000 is few)")
    add_number(p, "step_size", 0.0, "step of PGD in sky sigmas; 0: 2.5 eps / steps")
    p.add_argument(
        "--no-random-start", dest="random_start", action="store_false", help="start at the image itself"
    )
    add_number(p, "restarts", 1, "random starts of PGD and APGD; the best is kept")
    add_loss(p, "what the attack maximises, or minimises for a target")
    target = p.add_mutually_exclusive_group()
    towards = "towards this redshift (default: away from z_spec)"
    target.add_argument("--target-redshift", type=number, metavar="Z", help=towards)
    target.add_argument(
        "--target-shift", type=number, metavar="S", help="towards z_spec + S (1 + z_spec), S of either sign"
    )
    done = "a galaxy is done when <z> is further than F (1 + z) from z_spec, or within F (1 + z) of a target"
    add_number(p, "stop", 0.0, f"{done}; 0: never", metavar="F")
    add_precision(p)
    add_device(p)
    p.add_argument("--seed", type=seed, default=0, help="of the random starts (default 0)")
