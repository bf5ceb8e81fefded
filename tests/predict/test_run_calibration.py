"""The calibration that a run folder keeps: a file whose numbers make no PDFs is refused."""

import json
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from hpcphotoz.predict.run_calibration import FILE, find_calibration
from hpcphotoz.training.optimisation.origin import weights_sha256
from tests.helpers.networks import LogisticNetwork, StubNetwork

NETWORKS = [StubNetwork(), StubNetwork("other", LogisticNetwork(seed=1))]


def write(run: Path, **changes: object) -> None:
    """A calibration of `NETWORKS` in a run folder."""
    runs = [
        {"name": one.name, "step": one.step, "weights_sha256": weights_sha256(one.module.state_dict())}
        for one in NETWORKS
    ]
    numbers = {"temperature": 1.5, "pit": [0.2, -0.1], "weights": [0.25, 0.75]}
    entry = {"runs": runs, "tta": False, **numbers, "fitted": {"objects": 100}, **changes}
    (run / FILE).write_text(json.dumps({"format": 1, "calibrations": [entry]}))


def test_the_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    found, note = find_calibration(NETWORKS, [tmp_path], tta=False)
    assert found == Calibration((0.25, 0.75), 1.5, (0.2, -0.1)) and note.startswith("calibrated as")
    assert find_calibration(NETWORKS[::-1], [tmp_path], tta=False)[0] == Calibration(
        (0.75, 0.25), 1.5, (0.2, -0.1)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [2.0, -1.0]},
        {"weights": [1.0, 1.0]},
        {"weights": [float("nan"), 1.0]},
        {"temperature": 1e-320},
        {"temperature": 10**400},
        {"temperature": "1.5"},
        {"pit": [1e308]},
        {"pit": ["0.2"]},
        {"pit": [0.0] * 100_000},
        {"runs": []},
    ],
    ids=lambda changes: " ".join(map(str, changes)),
)
def test_numbers_that_make_no_pdfs_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path, **changes)
    with pytest.raises(BadInput, match=r"is no calibration: remove it"):
        find_calibration(NETWORKS, [tmp_path], tta=False)


def test_a_run_named_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    tree = json.loads((tmp_path / FILE).read_text())
    for run in tree["calibrations"][0]["runs"]:
        run["name"] = "standard"
    (tmp_path / FILE).write_text(json.dumps(tree))
    with pytest.raises(BadInput, match=r"is no calibration: remove it"):
        find_calibration(NETWORKS, [tmp_path], tta=False)
