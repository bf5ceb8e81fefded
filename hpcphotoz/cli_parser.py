"""What every command's parser has in common."""

import argparse
from typing import NoReturn

from hpcphotoz.errors import BadInput


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


def command(commands: "argparse._SubParsersAction[Parser]", name: str, function: object) -> Parser:
    text = (getattr(function, "__doc__", "") or "").strip()
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(function=function)
    return parser
