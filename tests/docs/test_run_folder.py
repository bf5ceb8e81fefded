"""The page on the run folder names what a run writes."""

import re
from pathlib import Path

import pytest

import hpcphotoz
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
    # Of the user, `launch`, `train --profile`, own networks, run.keep_hours, run.sinks.
    others = {"STOP", "launch", "profile", "model.py.txt", "kept", "tensorboard", "wandb"}
    assert named - written == others
