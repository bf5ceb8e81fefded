"""The command `profiles`."""

import argparse

from hpcphotoz.cli.parser import Commands, command
from hpcphotoz.cli.runs.summary import print_lines
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.request.profile import find_profile, load_profile, profile_files, user_folder
from hpcphotoz.output import number_of


def profiles(options: argparse.Namespace) -> int:
    """List the profiles of clusters for `launch slurm --profile`, or print one: the start of your own."""
    if options.name:
        print_lines(find_profile(options.name).read_text(encoding="utf-8").splitlines())
        load_profile(options.name)  # one that cannot be used is said to be so
        return 0
    files = profile_files()
    width = max(map(len, files))
    own = user_folder()
    marks = {name: " (yours)" if file.parent == own else "" for name, file in files.items()}
    lines, broken = [], []
    for name in files:
        try:
            lines.append(f"{name:{width}}  {load_profile(name).description}{marks[name]}")
        except BadInput as error:
            broken.append(name)
            lines.append(f"{name:{width}}  cannot be used{marks[name]}: {error}")
    print_lines(lines)
    if broken:
        raise BadInput(
            f"{number_of(len(broken), 'profile')} cannot be used: {', '.join(broken)}: see the list"
        )
    return 0


def add(commands: Commands) -> None:
    """Add the parser of `profiles`."""
    p = command(commands, "profiles", profiles)
    text = "profile to print (default: list all); save it in ~/.config/hpcphotoz/profiles and change it"
    p.add_argument("name", nargs="?", metavar="NAME", help=text)
