"""The masking checks on losses whose differences are known."""

import numpy as np
import pytest

from hpcphotoz.evaluation.masking.attacks import PGD
from hpcphotoz.evaluation.masking.checks import failures, paired_difference, run_checks
from hpcphotoz.evaluation.masking.measure import Array, MaskingLosses
from hpcphotoz.evaluation.masking.section import masking_section
from tests.helpers.evaluation_results import MASKED, MASKING_ATTACKS, make_result, masking_losses

CLEAN = masking_losses().clean
NOISE = np.random.default_rng(1).normal(0, 1, MASKED)


def failed(found: MaskingLosses) -> set[str]:
    return {check.name for check in run_checks(found) if not check.passed}


def test_the_difference_is_that_of_paired_samples() -> None:
    change = paired_difference(CLEAN + 0.5 + 0.1 * NOISE, CLEAN)
    assert change.mean == pytest.approx(0.5 + 0.1 * NOISE.mean())
    assert change.error == pytest.approx(
        0.1 * np.sqrt(((NOISE - NOISE.mean()) ** 2).sum() / (MASKED - 1) / MASKED)
    )


def test_losses_in_order_pass_every_check() -> None:
    assert failed(masking_losses()) == set()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pgd_3": CLEAN + 0.2}, {"steps"}),  # falls between 1 and 3 steps
        ({"PGD-10 at 2 epsilon": CLEAN + 0.9}, {"eps"}),
        ({"apgd": CLEAN + 1.9}, {"apgd"}),
        ({"pgd_50": CLEAN + 2.2}, {"restarts"}),
        ({"square": CLEAN + 2.1}, {"black_box"}),
        ({"other": CLEAN + 2.1}, {"transfer from other"}),
        # Weaker in the mean, but stronger for a quarter of the galaxies.
        ({"square": CLEAN + np.where(np.arange(MASKED) % 4 == 0, 2.5, 0.5)}, {"black_box"}),
    ],
)
def test_each_check_finds_its_own_fault(change: dict[str, Array], expected: set[str]) -> None:
    assert failed(masking_losses(**change)) == expected


def test_noise_around_zero_is_no_failure() -> None:
    level, n = NOISE - NOISE.mean(), MASKED
    assert failed(masking_losses(apgd=CLEAN + 2 - 0.3 / np.sqrt(n) + 0.3 * level)) == set()  # one error below
    assert failed(masking_losses(apgd=CLEAN + 1.999)) == set()  # exact, but 0.05 % of the rise
    assert failed(masking_losses(apgd=CLEAN + 1.6 + 0.3 * level)) == {"apgd"}


def test_a_loss_that_does_not_rise_is_a_failure() -> None:
    flat = {name: CLEAN + 0.01 * NOISE for name in MASKING_ATTACKS}
    found = MaskingLosses("run", CLEAN, flat, {}, np.ones(MASKED), np.zeros(MASKED))
    assert {"gradients", "unbounded", "steps", "eps"} <= failed(found)


def test_a_rise_of_every_object_is_a_rise_although_its_mean_has_a_large_error() -> None:
    few = masking_losses()
    factor = np.where(np.arange(6) == 0, 100.0, 1.0)  # rises of cross-entropy differ by as much
    clean = few.clean[:6]
    attacked = {name: clean + factor * (loss[:6] - clean) for name, loss in few.attacked.items()}
    rise = paired_difference(attacked[PGD], clean)
    assert 0 < rise.mean < 3 * rise.error
    found = MaskingLosses("run", clean, attacked, {}, np.zeros(6), np.ones(6))
    assert failed(found) == set()
    by_halves = {name: np.where(np.arange(6) % 2, loss, clean) for name, loss in attacked.items()}
    assert {"steps", "eps"} <= failed(MaskingLosses("run", clean, by_halves, {}, np.zeros(6), np.ones(6)))


def test_a_few_objects_without_gradient_are_too_many() -> None:
    vanishing = np.zeros(MASKED)
    vanishing[:1] = 1  # of 64: 1.6 %
    found = MaskingLosses("run", CLEAN, masking_losses().attacked, {}, vanishing, np.ones(MASKED))
    assert failed(found) == {"gradients"}


def test_the_section_records_failures_in_one_line_each() -> None:
    result = make_result(("run",))
    section = masking_section(result, [masking_losses(square=CLEAN + 2.1)])
    (line,) = section.record["failures"]
    assert line.startswith("masking check failed: run 'run': Square") and "\n" not in line
    assert not section.record["passed"] and section.record["objects"] == MASKED
    assert section.record["networks"]["run"]["black_box"]["fraction_stronger"] == 1
    assert [row[2] for row in section.tables[0]].count("FAIL") == 1
    assert "FAILED: 1 check of run, whose robustness" in section.text
    good = masking_section(result, [masking_losses()])
    assert good.text.endswith("All checks passed.")
    assert good.record["passed"] and failures({"run": run_checks(masking_losses())}) == []
