"""docs/reference/metrics.md names what real runs write to metrics.jsonl, key by key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hpcphotoz
from tests.helpers.paths import ROOT

PAGE = ROOT / "docs/reference/metrics.md"
# Keys that the small runs below do not write, by kind of line: another option or a fault brings them.
OF_OTHER_RUNS: dict[str, set[str]] = {"training": {"rank_wait", "slowest_rank", "straggler_ratio"}}

HOW = (
    "{keys} on lines of {kind}: a new key of metrics.jsonl needs a row in the table of its kind of line in "
    "docs/reference/metrics.md: key, unit, meaning, and when it is there; a new kind of line (another "
    "`part`) needs a section `## Part` of its own, with that word in capitals"
)


def documented() -> dict[str, set[str]]:
    """Keys of each kind of line, as the page lists them."""
    found: dict[str, set[str]] = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert all(row.count("|") == 4 for row in rows), "three columns: key, unit, meaning"
        found[section.splitlines()[0].lower()] = {row.split("`")[1] for row in rows}
    return found


def written(*runs: Path) -> dict[str, set[str]]:
    """Keys of each kind of line that runs have written."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for text in (run / "metrics.jsonl").read_text().splitlines():
            line: dict[str, Any] = json.loads(text)
            found.setdefault(line.get("part", "training"), set()).update(line)
    return found


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A standard and an adversarial run, both with validations and saves."""
    small: dict[str, Any] = {"global_batch": 16, "width": 8, "bins": 20, "validation": 0.2, "epochs": 1}
    folder = tmp_path_factory.mktemp("metrics")
    standard, adversarial = (
        hpcphotoz.train(recipe, dataset, folder / recipe, device="cpu", log_steps=2, **small)
        for recipe in ("standard", "adversarial")
    )
    return standard, adversarial


def test_the_page_names_every_key_that_runs_write(runs: tuple[Path, Path]) -> None:
    page, found = documented(), written(*runs)
    assert {"training", "validation", "checkpoint"} <= set(found)
    for kind, keys in found.items():
        missing = keys - page["every line"] - page.get(kind, set())
        assert not missing, HOW.format(keys=", ".join(sorted(missing)), kind=kind)


def test_runs_write_every_key_that_the_page_names(runs: tuple[Path, Path]) -> None:
    page, found = documented(), written(*runs)
    for kind, keys in found.items():
        gone = page[kind] - keys - OF_OTHER_RUNS.get(kind, set())
        assert not gone, (
            f"the page names {', '.join(sorted(gone))} on lines of {kind}, which these runs do not write: "
            "remove the row, or, if other runs write the key, add it to OF_OTHER_RUNS"
        )


def test_every_line_has_a_step_and_an_epoch(runs: tuple[Path, Path]) -> None:
    for run in runs:
        for text in (run / "metrics.jsonl").read_text().splitlines():
            assert documented()["every line"] <= set(json.loads(text)), text


def test_the_example_reads_the_loss(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(block.replace("run/metrics.jsonl", str(runs[1] / "metrics.jsonl")), names)
    assert [step for step, _ in names["loss"]] == [2, 4] and all(loss > 0 for _, loss in names["loss"])
