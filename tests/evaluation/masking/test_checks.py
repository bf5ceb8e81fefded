"""The masking checks on losses whose differences are known."""

import numpy as np
import pytest

from hpcphotoz.evaluation.masking.attacks import PGD, SQUARE, STRONG_APGD, STRONG_PGD, masking_attacks
from hpcphotoz.evaluation.masking.checks import failures, paired_difference, run_checks
from hpcphotoz.evaluation.masking.measure import Array, MaskingLosses
from hpcphotoz.evaluation.masking.section import masking_section
from tests.helpers.evaluation_results import make_result

N = 64
ATTACKS = list(masking_attacks(0.1))


def losses(**changes: Array) -> MaskingLosses:
    """Losses that pass every check; `changes` by the names of the fields or of `NAMES`."""
    rng = np.random.default_rng(0)
    clean = rng.gamma(2.0, 1.0, N)
    attacked = {name: clean + 1 + 0.1 * ATTACKS.index(name) for name in ATTACKS}
    for factor, rise in ((0.25, 0.3), (0.5, 0.6), (2, 2.0), (4, 4.0)):
        attacked[f"PGD-10 at {factor:g} epsilon"] = clean + rise
    attacked |= {"PGD-10": clean + 1.2, PGD: clean + 1.5, STRONG_PGD: clean + 2, STRONG_APGD: clean + 2.1}
    attacked[SQUARE] = clean + 0.5
    transferred = {"other": clean + 0.4}
    for name, change in changes.items():
        where = transferred if name == "other" else attacked
        where[NAMES.get(name, name)] = change
    return MaskingLosses("run", clean, attacked, transferred, np.zeros(N), np.ones(N))


NAMES = {"square": SQUARE, "apgd": STRONG_APGD, "strong": STRONG_PGD, "pgd_3": "PGD-3", "pgd_50": PGD}
CLEAN = losses().clean
NOISE = np.random.default_rng(1).normal(0, 1, N)


def failed(found: MaskingLosses) -> set[str]:
    return {check.name for check in run_checks(found) if not check.passed}


def test_the_difference_is_that_of_paired_samples() -> None:
    change = paired_difference(CLEAN + 0.5 + 0.1 * NOISE, CLEAN)
    assert change.mean == pytest.approx(0.5 + 0.1 * NOISE.mean())
    assert change.error == pytest.approx(0.1 * np.sqrt(((NOISE - NOISE.mean()) ** 2).sum() / (N - 1) / N))


def test_losses_in_order_pass_every_check() -> None:
    assert failed(losses()) == set()


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
        ({"square": CLEAN + np.where(np.arange(N) % 4 == 0, 2.5, 0.5)}, {"black_box"}),
    ],
)
def test_each_check_finds_its_own_fault(change: dict[str, Array], expected: set[str]) -> None:
    assert failed(losses(**change)) == expected


def test_noise_around_zero_is_no_failure() -> None:
    level = NOISE - NOISE.mean()
    assert failed(losses(apgd=CLEAN + 2 - 0.3 / np.sqrt(N) + 0.3 * level)) == set()  # one error below
    assert failed(losses(apgd=CLEAN + 1.999)) == set()  # exact, but 0.05 % of the rise
    assert failed(losses(apgd=CLEAN + 1.6 + 0.3 * level)) == {"apgd"}


def test_a_loss_that_does_not_rise_is_a_failure() -> None:
    flat = {name: CLEAN + 0.01 * NOISE for name in ATTACKS}
    found = MaskingLosses("run", CLEAN, flat, {}, np.ones(N), np.zeros(N))
    assert {"gradients", "unbounded", "steps", "eps"} <= failed(found)


def test_a_rise_of_every_object_is_a_rise_although_its_mean_has_a_large_error() -> None:
    few = losses()
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
    vanishing = np.zeros(N)
    vanishing[:1] = 1  # of 64: 1.6 %
    found = MaskingLosses("run", CLEAN, losses().attacked, {}, vanishing, np.ones(N))
    assert failed(found) == {"gradients"}


def test_the_section_records_failures_in_one_line_each() -> None:
    result = make_result(("run",))
    section = masking_section(result, [losses(square=CLEAN + 2.1)])
    (line,) = section.record["failures"]
    assert line.startswith("masking check failed: run 'run': Square") and "\n" not in line
    assert not section.record["passed"] and section.record["objects"] == N
    assert section.record["networks"]["run"]["black_box"]["fraction_stronger"] == 1
    assert [row[2] for row in section.tables[0]].count("FAIL") == 1
    good = masking_section(result, [losses()])
    assert good.record["passed"] and failures({"run": run_checks(losses())}) == []
