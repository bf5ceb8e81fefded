"""The page on the run folder names what a run writes."""

import re
from pathlib import Path

import pytest

import hpcphotoz
from hpcphotoz.config import Config
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs/explanation/run-folder.md").read_text()


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "run"
    return hpcphotoz.train(
        "adversarial",
        dataset,
        out,
        device="cpu",
        epochs=1,
        global_batch=16,
        width=8,
        log_steps=1,
        validation=0.2,
    )


def test_the_tree_names_every_file_of_a_run(run: Path) -> None:
    tree = re.search(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert tree
    named = {line.split()[0].rstrip("/") for line in tree[1].splitlines() if line[:1].strip()}
    written = {path.name for path in run.iterdir()}
    assert written <= named, written - named
    # Of the user, `launch`, `calibrate`, `train --profile`, own networks, run.keep_hours, run.sinks.
    others = {"STOP", "calibration.json", "launch", "profile", "model.py.txt", "kept", "tensorboard", "wandb"}
    assert named - written == others


def test_the_page_on_resumes_names_every_option_that_may_change() -> None:
    page = (ROOT / "docs/how-to/resume.md").read_text()
    found = re.search(r"\*\*What may differ in the new command\*\*(.*?)Anything else", page, re.DOTALL)
    assert found
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", found[1])} - set(
        Config.model_fields
    )
    sections = {name: getattr(Config(), name) for name in Config.model_fields}
    compute = sections.pop("compute")
    assert named == {option for section in sections.values() for option in section.may_change}
    kept = set(type(compute).model_fields) - compute.may_change
    assert kept == {"precision", "attack_precision"}, "the page says: all but the precisions"
