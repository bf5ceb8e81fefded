"""The documentation: names in the reference exist, links and paths lead somewhere, Sphinx has no warning."""

import ast
import re
import subprocess
import sys
from importlib import import_module, util
from pathlib import Path
from types import ModuleType

import pytest

from hpcphotoz.config import load as config
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TOP_PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The Sphinx extension that writes the reference; it needs no Sphinx for that."""
    spec = util.spec_from_file_location("reference_pages", DOCS / "_ext" / "reference_pages.py")
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def headings(path: Path) -> set[str]:
    """The anchors of a page: headings as GitHub and MyST name them, and explicit labels."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


@pytest.mark.parametrize("page", [*TOP_PAGES, *PAGES], ids=relative)
def test_internal_links_lead_somewhere(page: Path) -> None:
    text = _CODE.sub("", page.read_text())
    for target in _LINK.findall(text) + _IMAGE.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file(), f"{page}: {target}: no such file"
        if anchor and not path.is_relative_to(DOCS / "reference"):  # whose headings are generated
            assert anchor in headings(path), f"{page}: {target}: no such heading"


@pytest.mark.parametrize("page", [*TOP_PAGES, *PAGES], ids=relative)
def test_no_text_is_lost_as_an_html_tag(page: Path) -> None:
    r"""The mean redshift is written \<z>: without the backslash a page shows nothing."""
    tags = re.findall(r"(?<!\\)<[a-z/](?!ttps?:)[^>]*>", _CODE.sub("", page.read_text()), re.IGNORECASE)
    assert not tags


def test_paths_in_the_readme_exist() -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    paths = re.findall(r"`((?:benchmarks|docs|hpcphotoz|kernels|launch|tests)/[^`\s]*)`", text)
    assert paths and not [path for path in paths if not (ROOT / path).exists()]


def test_the_tutorial_computes_on_one_device_where_there_is_a_gpu_too() -> None:
    """Its plots take tensors of the networks and the bins' centres together: all are on the CPU."""
    text = (DOCS / "tutorial" / "robust-network.md").read_text()
    cells = re.findall(
        r"^```\{code-cell\} python3\n(?::tags:[^\n]*\n)?(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    calls = [node for cell in cells for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func) in ("hpcphotoz.open", "hpcphotoz.load")]
    assert len(calls) == 3
    for call in calls:
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        assert "'cpu'" in map(ast.unparse, given), ast.unparse(call)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_page_is_in_a_table_of_contents(page: Path) -> None:
    if page.name == "index.md":
        return
    index = (page.parent / "index.md").read_text()
    listed = re.findall(r"```\{toctree\}.*?```", index, re.DOTALL)
    assert any(page.stem in block or ":glob:" in block for block in listed), f"{page} is in no toctree"


def test_every_name_in_the_reference_exists(generator: ModuleType) -> None:
    text = (DOCS / "reference" / "api.md").read_text()
    modules = re.findall(r"^<!-- generated: module: ([\w.]+) -->$", text, re.MULTILINE)
    assert len(modules) > 9
    page = generator.generate(text)
    for module in modules:
        assert f"## `{module}`" in page, f"{module} is left out"
        names = generator.public_names(module)
        assert names, f"{module}: no public name"
        for name in names:
            assert hasattr(import_module(module), name), f"{module}.{name}"
            assert generator.exists(f"{module}.{name}")
    for page in PAGES:
        for name in re.findall(r"`(hpcphotoz(?:\.\w+)+)`", page.read_text()):
            assert generator.exists(name), f"{page}: {name}"


def test_the_reference_names_every_command_and_option(generator: ModuleType) -> None:
    commands = generator.command_line()
    for name, parser in generator.commands().items():
        assert f"## `hpcphotoz {name}`" in commands
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or "." in option[2:] or f"`{option}" in commands, option
    page = generator.configuration()
    for option in config.options():
        assert f"| `{option.partition('.')[2]}`" in page, option
    assert generator.generate("<!-- generated: recipes -->\n").count("```toml") == len(config.recipes())


@pytest.mark.slow
def test_sphinx_has_no_warning(tmp_path: Path) -> None:
    """Without the notebook, which `make docs` executes."""
    pytest.importorskip("sphinx", reason="`make docs` installs it")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-D",
        "nb_execution_mode=off",
    ]
    found = subprocess.run(
        [*command, str(DOCS), str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert found.returncode == 0, found.stderr
