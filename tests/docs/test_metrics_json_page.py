"""docs/reference/metrics-json.md names what evaluations write to metrics.json, key by key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.data.select.subset import ALL_OBJECTS
from hpcphotoz.evaluation.baseline.knn import knn_colours
from hpcphotoz.evaluation.certificate.measure import certify
from hpcphotoz.evaluation.certificate.section import certificate_record
from hpcphotoz.evaluation.certificate.smoothing import Smoothing
from hpcphotoz.evaluation.conformal.measure import measure_conformal
from hpcphotoz.evaluation.conformal.section import conformal_record
from hpcphotoz.evaluation.masking.section import masking_section
from hpcphotoz.evaluation.natural.measure import measure_natural
from hpcphotoz.evaluation.natural.second_epoch import measure_second_epoch
from hpcphotoz.evaluation.natural.section import natural_record
from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.perturbation.measure import measure_perturbations
from hpcphotoz.evaluation.perturbation.section import perturbation_record
from hpcphotoz.evaluation.report.bins import bins_section
from hpcphotoz.evaluation.report.summary import report_summary
from hpcphotoz.evaluation.robustness import evaluate
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.evaluation_results import masking_losses
from tests.helpers.networks import TWO_BINS, LogisticNetwork, StubNetwork
from tests.helpers.paths import ROOT

PAGE = ROOT / "docs/reference/metrics-json.md"
RUNS, METHODS = ("standard", "steady"), ("fgsm", "pgd")
HOW = (
    "{part}: docs/reference/metrics-json.md and metrics.json have different keys, {keys}: a new key needs a "
    "row in the table of its section: key, unit, meaning, and when it is there"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`metrics.json` of two networks, with everything that options can add."""
    folder, stamps = tmp_path_factory.mktemp("metrics"), noise_stamps(120)
    data, train = write_stamps(folder / "d", stamps[:40]), write_stamps(folder / "t", stamps[40:])
    networks = [StubNetwork(RUNS[0]), StubNetwork(RUNS[1], LogisticNetwork(scale=0.001))]
    how = {"minimal_eps_max": 0.2, "batch": 40, "calibrations": {RUNS[0]: Calibration(temperature=2.0)}}
    result = evaluate(networks, data, eps=(0.1,), methods=METHODS, steps=1, **how)  # type: ignore[arg-type]
    baseline = knn_colours(train, data, TWO_BINS)
    sections = [one for one in (bins_section(result),) if one is not None]
    summary = report_summary(result, baseline, sections)
    written: dict[str, Any] = json.loads(json.dumps(summary, allow_nan=False))
    return written


def documented() -> dict[str, set[str]]:
    """Keys of each section of the page."""
    found: dict[str, set[str]] = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        first = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
        found[section.splitlines()[0]] = set(re.findall("`([^`]*)`", " ".join(first)))
    return found


def agree(part: str, found: dict[str, Any], names: dict[str, str] | None = None) -> None:
    keys = {(names or {}).get(key, key) for key in found}
    differing = keys ^ documented()[part]
    assert not differing, HOW.format(part=part, keys=", ".join(sorted(differing)))


def test_the_page_names_every_key_and_no_other(tree: dict[str, Any]) -> None:
    agree("Top level", tree, dict.fromkeys(RUNS, "RUN"))
    agree("Data", tree["data"])
    agree("Attack", tree["attack"])
    for column in tree["bins"].values():
        agree("Bins", column)
    agree("Versions", tree["versions"])
    for run in RUNS:
        agree("A run", tree[run], dict.fromkeys(METHODS, "METHOD"))
        agree("Minimal epsilon", tree[run]["minimal_eps"])
        for condition in (tree[run]["clean"], *tree["robustness_curves"][run]["pgd"]):
            agree("A condition", condition)


def test_the_page_names_every_key_of_the_further_measurements(tmp_path: Path) -> None:
    folder, network = tmp_path, StubNetwork(RUNS[0])
    stamps = noise_stamps(16)
    data, other = write_stamps(folder / "d", stamps[:8]), write_stamps(folder / "o", stamps[8:])
    result = evaluate([network], data, eps=(0.1,), methods=("fgsm",), steps=1)
    headline = HeadlineAttack([network], result)
    certificates = certify([network], result, Smoothing(1.0, samples=20, confidence=0.9))
    shifts = measure_natural(headline)
    epoch = measure_second_epoch(headline, shifts, data)
    natural = natural_record(result, shifts, epoch)
    agree("Natural perturbations", natural | natural["networks"][RUNS[0]]["sky_noise"])
    masking = masking_section(result, [masking_losses()]).record
    checks = masking["networks"]["run"].values()
    agree("Masked gradients", masking | {key: value for check in checks for key, value in check.items()})
    records = {
        "Perturbation": perturbation_record(result, measure_perturbations(headline)),
        "Conformal intervals": conformal_record(result, measure_conformal(headline, other, ALL_OBJECTS)),
        "Certificate": certificate_record(certificates),
    }
    for part, record in records.items():
        json.dumps(record, allow_nan=False)
        agree(part, record | record["networks"][RUNS[0]])


def test_the_calibration_of_a_run_is_there_or_null(tree: dict[str, Any]) -> None:
    assert tree[RUNS[0]]["calibration"] == {"temperature": 2.0, "pit": []}
    assert tree[RUNS[1]]["calibration"] is None


def test_metrics_elsewhere_are_those_of_a_condition(tree: dict[str, Any]) -> None:
    page = documented()
    assert set(tree["transfer"]) == set(RUNS)
    for figures in (tree["transfer"][RUNS[0]][RUNS[1]], tree["knn_colours"]):
        assert {"bias", "sigma_mad", "eta", "n"} <= set(figures)
        assert set(figures) <= page["A condition"] | page["Nearest neighbours"]
        assert set(figures["errors"]) == set(tree[RUNS[0]]["clean"]["errors"])
    assert page["Nearest neighbours"] <= set(tree["knn_colours"])


def test_the_example_reads_the_curves(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(tree))
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    exec(block.replace("report/metrics.json", str(tmp_path / "metrics.json")), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RUNS)
    assert f"(0.1, {tree['standard']['pgd']['sigma_mad']})" in lines[0]
