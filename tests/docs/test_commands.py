"""hpcphotoz accepts every command line of the README and the documentation."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcphotoz import cli
from hpcphotoz.cli import training
from hpcphotoz.cli.cluster import launch
from hpcphotoz.config import load as config
from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_START = re.compile(r"(?:^|\s)(?:python -m |-m )?hpcphotoz (?=[a-z-])")
_OPTION = re.compile(r"--([a-z]+\.[a-z_0-9]+)\b")


def command_lines() -> Iterator[tuple[Path, str]]:
    """The words after `hpcphotoz` in every line of a code block that is not Python."""
    for page in PAGES:
        for language, block in re.findall(
            r"^```(\S*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            if language in ("python", "tree", "toml"):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                found = _START.search(line)
                if found and not line.lstrip().startswith("#"):
                    yield page, line[found.end() :]


def words_of(line: str) -> list[str]:
    """The words of a command line, without comment, redirection and what follows `&&`, `;` or `|`."""
    words = shlex.split(line, comments=True)
    ends = [k for k, word in enumerate(words) if word in (">", ">>", "|", "&&", ";", "&", "2>&1")]
    return words[: min(ends, default=len(words))]


LINES = list(command_lines())


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{p.name}-{line[:50]}" for p, line in LINES])
def test_the_command_line_is_understood(page: Path, line: str) -> None:
    words, after = words_of(line), []
    if words[0] == "launch" and "--" in words:
        cut = words.index("--")
        words, after = words[:cut], words[cut + 1 :]
    if words in (["--help"], [words[0], "--help"]):
        words = words[:1]
    parser = cli._parser()
    parser.refuse_unknown(words)
    if "--help" not in words and len(words) > 1:
        options, rest = parser.parse_known_args(words)
        parse_configuration(options, rest)
    if after:
        assert after[0] in ("train", *launch._LAUNCHED.split(", "))
        options = cli.parse(after)
        parse_configuration(options, options.rest)


def parse_configuration(options: argparse.Namespace, rest: list[str]) -> None:
    """Check `--section.key value` of `train` and `config`; other commands take no such words."""
    if options.command not in ("train", "config"):
        assert not rest, rest
        return
    options.rest = rest
    source = (
        options.config if options.config in config.recipes() else "standard"
    )  # a file that the reader has
    overrides = training._overrides(options)
    fraction = {} if options.config in config.recipes() else {"adversarial.fraction": "0.5"}
    config.load(source, fraction | overrides)


def test_there_are_command_lines() -> None:
    assert len(LINES) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_of_a_page_exists(page: Path) -> None:
    shown = set(_OPTION.findall(page.read_text())) - {"section.key"}
    assert shown <= set(config.options()), shown - set(config.options())
