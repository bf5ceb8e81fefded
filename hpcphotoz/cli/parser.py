"""The parser of every command, and the types and options that several commands share."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from hpcphotoz.config import load as config
from hpcphotoz.errors import BadInput, nearest

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


# argparse's own pattern has no exponent: it reads -5e-2 as an option.
_NEGATIVE = re.compile(r"-(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|inf|infinity|nan)$", re.IGNORECASE)
_MISSING = "the following arguments are required: "  # argparse's message begins so


class _StoreOnce(argparse._StoreAction):
    """Stores the value of an option, and refuses a second one for the same destination."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None and isinstance(parser, Parser):
            before = parser.given.get(self.dest)
            if before is self:
                once = f"give all after one {option_string}" if self.nargs == "+" else "give it once"
                parser.error(f"{option_string} is given twice: {once}")
            if before is not None:
                parser.error(
                    f"{before.option_strings[0]} and {option_string} mean the same: give one of them"
                )
            parser.given[self.dest] = self
        super().__call__(parser, namespace, values, option_string)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage.

    An option with a value is refused if it is given twice: argparse would silently keep the last value.
    A parser is therefore for one command line.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._negative_number_matcher = _NEGATIVE
        self.register("action", None, _StoreOnce)
        self.given: dict[str, argparse.Action] = {}  # by destination: the options of this command line
        self.refused: dict[str, str] = {}  # by name: what to say of an option that is elsewhere, or renamed

    def options(self) -> list[str]:
        """The options that this parser knows, as they are typed."""
        return [name for name in self._option_string_actions if name.startswith("--") and name != "--help"]

    def error(self, message: str) -> NoReturn:
        if message.startswith(_MISSING):  # CONFIG, where --data A B CONFIG has taken it
            missing = [name for name in message[len(_MISSING) :].split(", ") if not name.startswith("-")]
            greedy = [action.option_strings[0] for action in self.given.values() if action.nargs == "+"]
            if missing and greedy:
                message += f": write {missing[0]} before {greedy[0]}, which takes several words"
        raise BadInput(f"{message} (see {self.prog} --help)")

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Refuse the first unknown command or option, and name the nearest one.

        argparse would first report missing arguments, although one of them may only be misspelt. Options of
        the configuration (--section.key) are checked when it is loaded.
        """
        subparsers = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        commands: dict[str, Parser] = dict(subparsers[0].choices) if subparsers else {}
        for place, word in enumerate(words):
            name = word.partition("=")[0]
            if word == "--":
                return
            if word.startswith("--") and " " not in word and "." not in name:
                known = self._option_string_actions
                if name in self.refused:
                    raise BadInput(f"{name}: {self.refused[name]}")
                if name not in known:
                    hint = f"{nearest(name, known)}: see {self.prog} --help for all"
                    raise BadInput(f"{name}: unknown option{hint}")
            elif commands and not word.startswith("-"):
                if word not in commands:
                    hint = f"{nearest(word, commands)}; valid: {', '.join(commands)}"
                    raise BadInput(f"{word}: unknown command{hint}")
                commands[word].refuse_unknown(words[place + 1 :])
                return

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        # argparse's own method ignores a full disk and a closed pipe.
        if message:
            (file or sys.stderr).write(message)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def number(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: must be a finite number")
    return value


def option(name: str) -> Callable[[str], Any]:
    """A parser of values of one option of the configuration, `section.key`, with its range."""

    def checked(text: str) -> Any:
        try:
            return config.value_of(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from None

    return checked


def radius(text: str) -> float:
    """Parse a radius in sky sigmas, with the range of `attack.eps` but above 0."""
    value: float = option("attack.eps")(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 sky sigmas")
    return value


def count(text: str) -> int:
    """Parse a number of objects, at least 1."""
    return _whole_number(text, 1)


def path(text: str) -> Path:
    """Parse a path."""
    if not text:  # to pathlib, the working directory; in a shell script, an unset variable
        raise argparse.ArgumentTypeError("an empty path: give the name of a file or folder")
    return Path(text)


def condition(text: str) -> str:
    """Parse the text of a condition on objects, which is checked where the dataset's columns are known."""
    if not text:  # in a shell script, an unset variable: every object would be taken
        raise argparse.ArgumentTypeError(
            "an empty condition: write one, such as 'z_spec < 0.3', or leave the option out for every object"
        )
    return text


def seed(text: str) -> int:
    """Parse a seed, with the range of `run.seed`."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value < 1 << 31:
        raise argparse.ArgumentTypeError(
            f"{text}: must be a whole number, at least {least} and less than 2^31"
        )
    return value


def add_device(parser: Parser) -> None:
    """Add the option --device."""
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="where networks are computed; auto: on a GPU if there is one (default)",
    )


def command(commands: Commands, name: str, function: object) -> Parser:
    """Add the parser of a command; its help is the first line of the function's docstring."""
    text = (getattr(function, "__doc__", "") or "").strip()
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(function=function)
    return parser
