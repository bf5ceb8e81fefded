"""evaluate --check-masking, --natural and --second-epoch."""

import json
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.evaluation.masking.attacks import SQUARE, STRONG_PGD, masking_attacks
from hpcphotoz.evaluation.masking.measure import MaskingLosses
from hpcphotoz.evaluation.report.section import ReportSection

SMALL = ["--limit", "20", "--eps", "0.2", "--steps", "2", "--attacks", "pgd"]
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")


def measured(square: float) -> list[MaskingLosses]:
    """Losses that rise from attack to attack, but for that of the square attack."""
    attacks = masking_attacks(0.2)
    order = sorted(attacks, key=lambda name: (name == STRONG_PGD, attacks[name].eps, attacks[name].steps))
    rise = {name: np.full(20, 0.1 * (1 + place)) for place, name in enumerate(order)}
    strongest = rise["APGD-50 with 5 restarts"] = rise["PGD-50 with 5 restarts"] = np.full(20, 2.0)
    return [
        MaskingLosses(
            "standard", np.zeros(20), {**rise, SQUARE: square * strongest}, {}, np.zeros(20), np.ones(20)
        )
    ]


@pytest.mark.parametrize("square", [0.5, 1.5])
def test_a_failed_check_is_a_line_and_status_1_after_the_report(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    square: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    called: dict[str, object] = {}

    def measure(networks: object, result: object, **options: object) -> list[MaskingLosses]:
        called.update(options)
        return measured(square)

    def write(
        result: object,
        out: Path,
        baseline: object,
        sections: list[ReportSection],
        files: dict[str, str],
    ) -> dict[str, object]:
        (tmp_path / "written").touch()
        return {section.key: section.record for section in sections}

    monkeypatch.setattr("hpcphotoz.evaluation.masking.measure.measure_masking", measure)
    monkeypatch.setattr("hpcphotoz.evaluation.report.write.write_report", write)
    words = ["evaluate", str(run), "--data", str(dataset), "--out", str(tmp_path), *SMALL, "--json"]
    assert main([*words, "--check-masking", "12"]) == int(square > 1)
    assert called["objects"] == 12 and (tmp_path / "written").exists()
    said = capsys.readouterr()
    record = json.loads(said.out)["masking"]
    lines = [line for line in said.err.splitlines() if "masking check failed" in line]
    assert lines == [f"hpcphotoz: error: {line}" for line in record["failures"]] and len(lines) == int(
        square > 1
    )


@pytest.mark.slow
def test_natural_perturbations_and_a_second_night_are_in_the_report(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    words = ["evaluate", str(run), "--data", str(dataset), "--out", str(tmp_path), *SMALL]
    status = main([*words, "--check-masking", "4", "--natural", "--second-epoch", str(dataset)])
    tree = json.loads((tmp_path / "metrics.json").read_text())
    record = tree["natural"]
    rows = record["networks"]["standard"]
    # The night is the same one: nothing moves, and no ratio is known.
    assert rows["second_epoch"]["shift_p90"] == 0 and rows["second_epoch"]["attack_over_this"] is None
    assert record["second_epoch"]["matched"] == 20 and rows["sky_noise"]["n"] == 20
    assert rows["attack"]["attack_over_this"] == 1
    assert tree["masking"]["objects"] == 4 and status == int(not tree["masking"]["passed"])
    page = (tmp_path / "report.html").read_text()
    assert "An adversary and the sky" in page and "Masked gradients" in page


def test_a_second_night_needs_natural_and_a_dataset(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), "--data", str(dataset), "--out", str(tmp_path / "out"), *SMALL]
    assert main([*words, "--second-epoch", str(dataset)]) == 2
    assert "--natural: give it too" in capsys.readouterr().err
    assert main([*words, "--natural", "--second-epoch", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err and not (tmp_path / "out").exists()
