"""Texts claim no more about the work of others than its abstract says."""

import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

TEXTS = sorted(
    path
    for pattern in (
        *("*.md", "docs/**/*.md", "benchmarks/**/*.md"),
        *("hpcphotoz/**/*.py", "hpcphotoz/**/*.toml", "kernels/**/*.py"),
    )
    for path in ROOT.glob(pattern)
)
# The abstract of arXiv:2002.10154 gives no size of a perturbation and names no network.
UNKNOWN = (
    "noise",
    "sigma",
    "epsilon",
    "attacked by",
    "campagne attacked",
    "campagne 2020 attacked",
    "percent",
    " %",
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_claim_about_the_paper_exceeds_its_abstract(path: Path) -> None:
    text = " ".join(path.read_text().split())
    for sentence in re.split(r"(?<=[.;]) ", re.sub(r"et al\.|J\.-E\.", "", text)):
        if re.search(r"Campagne|2002\.10154", sentence):
            found = [word for word in UNKNOWN if word in sentence.lower()]
            assert not found, f"{found} in: {sentence}"
            assert "2002.10154" not in sentence or "CNN" not in sentence, (
                f"the paper's network in: {sentence}"
            )
