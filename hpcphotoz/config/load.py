"""Reads a configuration: a TOML file or a recipe, then overrides of the command line. Writes it as TOML."""

import difflib
import re
import shlex
import textwrap
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from hpcphotoz.config import Config
from hpcphotoz.config.model import renamed_network
from hpcphotoz.config.renamed import OLD_SECTION, REMOVED, RENAMED, option_names, to_current
from hpcphotoz.config.section import CommandText, Section, option_text
from hpcphotoz.errors import BadInput, nearest

_LONGEST = 1 << 20  # characters of a configuration file
_LISTED = 6  # old names that a refusal lists
_PLAIN_WORDS = {  # for those of pydantic
    "Input should be ": "must be ",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
}
_COLUMNS = 100  # width of the comments in a TOML file


def recipes() -> list[str]:
    """Names of the ready configurations."""
    folder = resources.files("hpcphotoz") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def sections() -> dict[str, type[Section]]:
    """The sections by name, in their order."""
    return {name: type(field.default) for name, field in Config.model_fields.items()}


def options() -> dict[str, tuple[str, str]]:
    """Every option as `section.key` -> (default, description)."""
    return {
        f"{name}.{key}": (str(field.default), (field.description or "") + _choices(field.annotation))
        for name, section in sections().items()
        for key, field in section.model_fields.items()
    }


def load(source: str, overrides: Mapping[str, str] | None = None, convert: bool = False) -> Config:
    """Read a configuration and apply overrides.

    Args:
        source: path of a TOML file, or the name of a recipe.
        overrides: `section.key` -> text, as given on the command line.
        convert: accept the names of earlier versions in the file. For the config.toml of run folders.

    Raises:
        BadInput: no such file or recipe, not TOML, an unknown key (the message lists the valid ones), an old
            name (it gives the new one), a value out of range, or text where the file must have a number.
    """
    tree = _read(source)
    if convert:
        tree = to_current(tree, source)
    elif told := _renamed(tree):
        command = f"hpcphotoz config {shlex.quote(source)}"
        raise BadInput(f"{source}: {told}: `{command}` prints it with today's names")
    if network := (overrides or {}).get("model.name"):
        tree["model"] = renamed_network(tree.get("model", {}), network)
    for name, text in (overrides or {}).items():
        section, _, key = name.partition(".")
        if name in RENAMED:
            raise BadInput(f"--{name}: is now --{RENAMED[name]}")
        if name in REMOVED:
            raise BadInput(f"--{name}: is no longer an option: leave it out")
        if name not in options():
            raise BadInput(f"--{name}: unknown option{_hint(name)}; valid: {_valid(section)}")
        tree.setdefault(section, {})[key] = CommandText(text)
    return parse(tree, source, overrides)


def nested(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by `section.key` as the nested mapping that `parse` reads."""
    tree: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        section, _, key = name.partition(".")
        tree.setdefault(section, {})[key] = value
    return tree


def configure(source: str, **options: object) -> Config:
    """A configuration from options by their bare names, which are unique over all sections.

    Args:
        source: name of the caller; error messages begin with it.
        options: such as epochs=3, eps=0.2.

    Raises:
        BadInput: an unknown name, or a value out of range.
    """
    return parse(nested(named(options, source)), source)


def named(options: Mapping[str, object], source: str = "options") -> dict[str, object]:
    """Options by bare name as options by `section.key`.

    Raises:
        BadInput: an unknown name.
    """
    keys = [f"{name}.{key}" for name, section in sections().items() for key in section.model_fields]
    full = {key.partition(".")[2]: key for key in keys}
    unknown = [name for name in options if name not in full]
    if unknown:
        raise BadInput(f"{source}: unknown option {unknown[0]}{nearest(unknown[0], full)}")
    return {full[name]: value for name, value in options.items()}


def value_of(name: str, text: str) -> Any:
    """The value of one option, `section.key`, from the text of a command line.

    Raises:
        ValueError: it is out of range; the message says what is wrong.
    """
    section, _, key = name.partition(".")
    try:
        found = Config.model_validate({section: {key: CommandText(text)}})
    except ValidationError as error:
        raise ValueError(_reason(error.errors()[0])) from None
    return getattr(getattr(found, section), key)


def parse(tree: Mapping[str, Any], source: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Validate a nested mapping.

    Args:
        tree: section -> key -> value.
        source: where the mapping comes from; error messages begin with it.
        overrides: options of `tree` from a command line; error messages name them as they were typed.

    Raises:
        BadInput: as `load`.
    """
    if told := _renamed(tree):
        raise BadInput(f"{source}: {told}")
    if removed := [name for name in option_names(tree) if name in REMOVED]:
        raise BadInput(f"{source}: {', '.join(removed)}: no longer an option: leave it out")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise BadInput(_refusal(error.errors()[0], source, overrides or {})) from None


def to_toml(config: Config) -> str:
    """The configuration as TOML text that `load` reads back to an equal one."""
    lines = []
    for section, values in config.model_dump().items():
        lines += [f"[{section}]", *(f"{key} = {option_text(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def commented_toml(config: Config, title: str) -> str:
    """TOML text with a comment before every section and option: its meaning, its values and its default.

    Args:
        config: the values to write.
        title: the comment at the top.
    """
    lines = _comment(title)
    for name, section in sections().items():
        lines += ["", *_comment(summary(section)), f"[{name}]"]
        for key, field in section.model_fields.items():
            meaning = (field.description or "") + _choices(field.annotation)
            lines += _comment(f"{meaning} (default {option_text(field.default)})")
            lines.append(f"{key} = {option_text(getattr(getattr(config, name), key))}")
    return "\n".join(lines) + "\n"


def summary(section: type[Section]) -> str:
    """The first line of a section's docstring."""
    return (section.__doc__ or "").strip().splitlines()[0]


def _refusal(error: Mapping[str, Any], source: str, typed: Mapping[str, str]) -> str:
    """The first error of pydantic in one line."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{source}: unknown key '{name}'{_hint(name)}; valid: {_valid(name.split('.')[0])}"
    reason = _reason(error)
    if name in typed:
        return f"--{name} {typed[name]}: {reason}"
    of_list = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
    if of_list in typed:  # an item of a list
        return f"--{of_list} {typed[of_list]}: {error.get('input')}: {reason}; separate several by spaces"
    # Options that do not fit together: name those of the command line that the reason mentions.
    mentioned = re.findall(r"\w+", reason)
    concerned = [f"--{key} {typed[key]}" for key in typed if key.partition(".")[2] in mentioned]
    begin = " ".join([source, *(["with"] if concerned else []), *concerned])
    if name in ("", begin):  # no section, or one that the source names already
        return f"{begin}: {reason}"
    given = error.get("input")
    # Of a whole section only the reason is said: its options contradict each other.
    value = "" if isinstance(given, dict) else f" = {given!r}"
    return f"{begin}: {name}{value}: {reason}"


def _renamed(tree: Mapping[str, Any]) -> str:
    """The options of a nested mapping that have another name today, with that; "" if there is none."""
    old = [name for name in option_names(tree) if name in RENAMED]
    listed = "; ".join(f"{name} is now {RENAMED[name]}" for name in old[:_LISTED])
    more = f" and {len(old) - _LISTED} more" if len(old) > _LISTED else ""
    return f"{listed}{more}"


def _hint(name: str) -> str:
    """A hint with the option or section whose name is most like an unknown one; "" if none is similar."""
    if name == OLD_SECTION:
        return " (its options are now in optimiser, adversarial, overlap, compute, run and data)"
    if name.startswith(f"{OLD_SECTION}."):  # a misspelt old name
        found = difflib.get_close_matches(name, list(RENAMED), n=1)
        return f" (did you mean {RENAMED[found[0]]}?)" if found else ""
    return nearest(name, [*options(), *sections()])


def _reason(error: Mapping[str, Any]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ").partition(", unable to parse")[0]
    for theirs, ours in _PLAIN_WORDS.items():
        text = text.replace(theirs, ours)
    return text


def _choices(annotation: object) -> str:
    return f" [{', '.join(get_args(annotation))}]" if get_origin(annotation) is Literal else ""


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent="# ", subsequent_indent="#   ")


def _valid(section: str) -> str:
    names = [name for name in options() if name.startswith(section + ".")] or list(sections())
    return ", ".join(names)


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    try:
        if source in recipes() and not path.is_file():
            text = (resources.files("hpcphotoz") / "recipes" / f"{source}.toml").read_text(encoding="utf-8")
        else:
            with path.open(encoding="utf-8-sig") as file:  # some editors begin with a byte order mark
                text = file.read(_LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        known, why = ", ".join(recipes()), getattr(error, "strerror", None) or error
        raise BadInput(
            f"{source}: not a readable TOML file nor a recipe ({known}){nearest(source, recipes())}: {why}"
        ) from None
    if len(text) > _LONGEST:  # a device such as /dev/zero has no end
        raise BadInput(f"{source}: more than {_LONGEST} characters: not a configuration")
    try:
        tree = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and numbers of thousands of digits
        raise BadInput(f"{source}: not TOML: {error}") from None
    except RecursionError:
        raise BadInput(f"{source}: nested too deeply: want sections of keys and values") from None
    for name in sections():
        if not isinstance(given := tree.get(name, {}), dict):
            raise BadInput(f"{source}: {name} = {given!r}: want a table [{name}]")
    return tree
