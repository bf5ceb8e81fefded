"""Small real runs call the functions of the walks in `docs/explanation/architecture.md` in that order."""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hpcphotoz.__main__ import main
from tests.helpers.datasets import make_dataset
from tests.helpers.paths import ROOT
from tests.helpers.sources.sdss_files import DEC, RA, write_set, write_table

PAGE = ROOT / "docs" / "explanation" / "architecture.md"


def walks() -> dict[str, list[str]]:
    """Dotted names in the tables of the page, by section title."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        names = re.findall(r"^\| \d+ \| `([\w.]+)`", section, flags=re.MULTILINE)
        if names:
            found[section.partition("\n")[0]] = names
    return found


def resolve(name: str) -> tuple[ModuleType, str, Any]:
    """The module of a dotted name, the name inside the module, and the object."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        found: Any = module
        for part in parts[cut:]:
            found = getattr(found, part)
        return module, ".".join(parts[cut:]), found
    raise AssertionError(f"{name}: no such module")


@contextmanager
def order_of_first_calls(names: list[str]) -> Iterator[list[str]]:
    """Collects the names of these functions in the order of their first calls inside the block."""
    # By file and name: decorators, such as torch's for operators, hide the function that they call.
    wanted, seen = {(resolve(name)[0].__file__, resolve(name)[1]): name for name in names}, list[str]()

    def note(frame: Any, event: str, argument: object) -> None:
        key = frame.f_code.co_filename, frame.f_code.co_qualname
        if event == "call" and key in wanted:
            seen.append(wanted.pop(key))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def dataset(folder: Path) -> Path:
    return make_dataset(folder, n=24, shard_rows=16)


def train(data: Path, out: Path) -> list[str]:
    options = {
        "--run.epochs": "1",
        "--run.global_batch": "12",
        "--compute.precision": "fp32",
        "--attack.steps": "1",
        "--model.width": "8",
        "--data.validation": "0",
    }
    words = [word for option in options.items() for word in option]
    return ["train", "adversarial", "--data", str(data), "--out", str(out), "--device", "cpu", *words]


def test_the_page_has_three_walks() -> None:
    assert len(walks()) == 3 and all(len(names) > 9 for names in walks().values())


@pytest.mark.parametrize("title", walks())
def test_every_name_of_a_walk_is_there(title: str) -> None:
    for name in walks()[title]:
        assert callable(resolve(name)[2]), name


def check(title: str, *command_lines: list[str]) -> None:
    names = next(names for section, names in walks().items() if section.startswith(title))
    with order_of_first_calls(names) as seen:
        for words in command_lines:
            assert main(words) == 0
    assert seen == names


def test_a_galaxy_from_a_fits_file_to_a_batch(tmp_path: Path) -> None:
    places = [(RA + 0.004 * k, DEC) for k in (-1, 0, 1)]
    write_set(tmp_path / "frames", places)
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": ra, "dec": dec, "z_spec": 0.1} for k, (ra, dec) in enumerate(places)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    out = tmp_path / "data"
    ingest = [
        "ingest",
        "sdss-frames",
        str(out),
        "--frames",
        str(tmp_path / "frames"),
        "--objects",
        str(table),
    ]
    check("A galaxy", [*ingest, "--stamp", "16", "--processes", "1"], train(out, tmp_path / "run"))


def test_a_batch_from_the_stream_to_an_update(tmp_path: Path) -> None:
    check("A batch", train(dataset(tmp_path / "data"), tmp_path / "run"))


def test_an_attack_from_the_command_line_to_the_kernel(tmp_path: Path) -> None:
    data, run = dataset(tmp_path / "data"), tmp_path / "run"
    assert main(train(data, run)) == 0
    words = ["attack", str(run), "--data", str(data), "--out", str(tmp_path / "attacked"), "--steps", "2"]
    check("An attack", [*words, "--precision", "fp32", "--device", "cpu"])
