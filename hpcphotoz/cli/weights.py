"""The command `import-weights`."""

import argparse

from hpcphotoz.cli.parser import Commands, command, path


def import_weights(options: argparse.Namespace) -> int:
    """Make a run folder of the weights of Campagne's or Pasquet's public code."""
    from hpcphotoz.training.run.import_weights import import_weights

    found = import_weights(options.file, options.out)
    ebv = "with" if found.with_ebv else "without"
    network = f"{found.model.name} {ebv} E(B-V), {found.model.bins} bins"
    print(f"{options.out}: the weights of {found.code.capitalize()}'s {network}")
    return 0


def add(commands: Commands) -> None:
    """Add the parser of this command."""
    p = command(commands, "import-weights", import_weights)
    kinds = "state dict of torch (*.pt, *.pth), or arrays under their names in the code (*.npz)"
    p.add_argument("file", type=path, metavar="FILE", help=kinds)
    p.add_argument("--out", type=path, required=True, metavar="RUN", help="run folder to make")
