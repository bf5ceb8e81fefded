"""What every command's parser has in common."""

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from hpcphotoz.errors import BadInput

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        # argparse's own ignores a full disk and a closed pipe.
        if message:
            (file or sys.stderr).write(message)


def command(commands: "argparse._SubParsersAction[Parser]", name: str, function: object) -> Parser:
    text = (getattr(function, "__doc__", "") or "").strip()
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(function=function)
    return parser
