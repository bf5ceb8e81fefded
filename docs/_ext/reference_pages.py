"""Writes the reference pages from the code: command line, configuration, Python API.

A page in `docs/reference` holds lines `<!-- generated: NAME -->`. `GENERATORS[NAME]` gives the Markdown that
takes their place.
"""

import argparse
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any, get_args, get_origin
from unittest import mock

import hpcphotoz.cli
from hpcphotoz.config import load as config

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PLACEHOLDER = re.compile(r"^<!-- generated: ([\w: .]+) -->$", re.MULTILINE)
Commands = dict[str, argparse.ArgumentParser]


def commands() -> Commands:
    """The parser of every command, by its name as it is typed, in the order of the program's help."""
    return dict(_commands_below(hpcphotoz.cli._parser(), ()))


def _commands_below(
    parser: argparse.ArgumentParser, words: tuple[str, ...]
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if words and not below:
        yield " ".join(words), parser
    for action in below:
        for name, child in action.choices.items():
            yield from _commands_below(child, (*words, name))


def command_line() -> str:
    """Every command with its usage and its arguments."""
    return "\n".join(_command(name, parser) for name, parser in commands().items())


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"({anchor(name)})=", f"## `hpcphotoz {name}`", "", _text(parser.description or ""), ""]
    with mock.patch.dict(os.environ, COLUMNS="100"):  # argparse wraps lines at the width of the terminal
        usage = parser.format_usage().removeprefix("usage: ").rstrip().replace("\n" + 7 * " ", "\n")
    lines += ["```text", usage, "```", ""]
    from_sections = False
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS and a.dest != "help"]
        if (group.title or "").partition(":")[0] in config.sections():
            from_sections = True
            continue
        for action in actions:
            lines += [f"`{_invocation(action)}`", f": {_text(_help(parser, action))}", ""]
    if from_sections:
        lines += [
            "`--SECTION.KEY VALUE`",
            ": Any option of the [configuration](configuration.md), such as `--run.epochs 20`.",
            "",
        ]
    if parser.epilog:
        lines += ["```text", parser.epilog, "```", ""]
    return "\n".join(lines)


def anchor(name: str) -> str:
    """The label of a command: `command-ingest-table`."""
    return f"command-{name.replace(' ', '-')}"


def _invocation(action: argparse.Action) -> str:
    """How an argument is typed: `--eps EPS [EPS ...]`."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest)
    value = str(value if action.choices and not action.metavar else action.metavar or value.upper())
    more = {"+": f"{value} [{value} ...]", "?": f"[{value}]"}.get(str(action.nargs), value)
    return f"{', '.join(action.option_strings)} {more}"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%")
    return f"{text} (required)" if action.required and action.option_strings else text


def configuration() -> str:
    """Every section with its options: values, default and meaning."""
    lines = []
    for name, section in config.sections().items():
        lines += [f"(section-{name})=", f"## `[{name}]`", "", _text(config.summary(section)), ""]
        lines += ["| option | values | default | meaning |", "|---|---|---|---|"]
        for key, field in section.model_fields.items():
            default = f"`{json.dumps(field.default)}`"
            meaning = _text(field.description or "")
            may = " †" if key in section.may_change else " ‡" if key in section.may_grow else ""
            lines.append(
                f"| `{key}`{may} | {_values(field.annotation, field.metadata)} | {default} | {meaning} |"
            )
        lines.append("")
    return "\n".join(lines)


def _values(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is dict:
        return "table"
    if get_origin(annotation) is list:
        choices = get_args(get_args(annotation)[0])  # of a Literal
        return f"list of {', '.join(f'`{one}`' for one in choices) or 'text'}"
    if get_origin(annotation) is not None:
        choices = [one for part in get_args(annotation) for one in (get_args(part) or (part,))]
        return ", ".join("a whole number" if one is int else f"`{one}`" for one in choices)
    kind = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[annotation]
    limits = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}
    found = [
        words.format(f"{getattr(one, name):g}")
        for one in metadata
        for name, words in limits.items()
        if getattr(one, name, None) is not None and abs(getattr(one, name)) < 1e5
    ]
    return ", ".join([kind, *found])


def recipes() -> str:
    """The files of the ready configurations."""
    folder = resources.files("hpcphotoz") / "recipes"
    found = []
    for name in config.recipes():
        text = (folder / f"{name}.toml").read_text(encoding="utf-8").strip()
        found += [f"### `{name}`", "", "```toml", text, "```", ""]
    return "\n".join(found)


def module(name: str) -> str:
    """The public names of a module: those of its `__all__`, or those that it defines."""
    found = public_names(name)
    lines = [
        f"(module-{name})=",
        f"## `{name}`",
        "",
        _text(_first_line(import_module(name))),
        "",
        "```{eval-rst}",
    ]
    lines += [f".. py:module:: {name}", ""]
    for one in found:
        value = getattr(import_module(name), one)
        if inspect.isclass(value):
            lines += [f".. autoclass:: {name}.{one}", "   :members:", ""]
        elif callable(value) and hasattr(value, "__qualname__"):
            lines += [f".. autofunction:: {name}.{one}", ""]
        else:
            lines += [f".. autodata:: {name}.{one}", ""]
    return "\n".join([*lines, "```", ""])


def public_names(name: str) -> list[str]:
    """The names of a module that the API page documents."""
    found = import_module(name)
    listed = getattr(found, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        key
        for key, value in vars(found).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    ]


GENERATORS: dict[str, Callable[[], str]] = {
    "command line": command_line,
    "configuration": configuration,
    "recipes": recipes,
}


def generate(text: str) -> str:
    """A page with its placeholders replaced."""

    def generated(match: re.Match[str]) -> str:
        what, _, name = match[1].partition(": ")
        return module(name) if what == "module" else GENERATORS[match[1]]()

    return PLACEHOLDER.sub(generated, text)


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ")


def _text(text: str) -> str:
    """A text of the code as Markdown, in which nothing is markup but what stands between backticks."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([*_<>\[\]|$])", r"\\\1", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", part) for part in parts[::2]]
    return "`".join(parts)


def _escape_docstring(
    app: "Sphinx", what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Marks of reStructuredText that docstrings use as themselves: |<z> - z|, a * b, names that end in _."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"([|*\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
        lines[number] = "`".join(parts)


def _resolve_code(app: "Sphinx", env: Any, node: Any, contnode: Any) -> Any:
    """A Python name without a page: plain text if it exists; a warning if it is ours and does not."""
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    if not target.startswith("hpcphotoz.") or exists(target):
        return contnode
    return None


def exists(dotted: str) -> bool:
    """Whether a dotted name leads to something."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            return False
        return True
    return False


def setup(app: "Sphinx") -> dict[str, Any]:
    """Called by Sphinx."""

    def replace_placeholders(app: "Sphinx", docname: str, content: list[str]) -> None:
        if docname.startswith("reference/"):
            content[0] = generate(content[0])

    app.connect("source-read", replace_placeholders)
    app.connect("autodoc-process-docstring", _escape_docstring, priority=400)  # before napoleon
    app.connect("missing-reference", _resolve_code)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
