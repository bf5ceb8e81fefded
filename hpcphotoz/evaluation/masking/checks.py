"""Checks that a network does not hide from attacks by masking its gradients.

They are those of Athalye et al. 2018 (arXiv:1802.00420, section 3.1) and Carlini et al. 2019
(arXiv:1902.06705, sections 5 and 6). A network that fails one may look robust because attacks on it fail.

Losses are compared object by object: the error of a mean difference is that of paired samples, and a
difference fails a check only if it is both larger than 3 errors and larger than 1 % of the rise of the loss
under the strong PGD.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hpcphotoz.evaluation.masking.attacks import (
    FACTORS,
    PGD,
    SQUARE,
    STEPS,
    STRONG_APGD,
    STRONG_PGD,
    UNBOUNDED_PGD,
    eps_name,
    steps_name,
)
from hpcphotoz.evaluation.masking.measure import Array, MaskingLosses

ERRORS = 3.0  # standard errors by which a difference must differ from zero
SMALL = 0.01  # of the rise of the loss under the strong PGD: a smaller difference is of no account
FEW = 0.05  # fraction of objects of which a weaker attack may be the stronger one, besides its own error
NONE = 0.01  # fraction of objects that may lack a gradient, or survive an unbounded attack


class Difference(NamedTuple):
    """Mean of a paired difference over objects, and its standard error."""

    mean: float
    error: float

    def text(self) -> str:
        """Mean and error, rounded to the error."""
        return f"{self.mean:+.3g} ± {self.error:.1g}"


@dataclass(frozen=True)
class Check:
    """One check of one network.

    Attributes:
        name: key of the record.
        title: what is checked, in a few words.
        measured, expected: in words, for the table and the message.
        passed: whether what was measured is as expected.
        figures: numbers for `metrics.json`.
    """

    name: str
    title: str
    measured: str
    expected: str
    passed: bool
    figures: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Entry of `metrics.json`."""
        return {"passed": self.passed, "measured": self.measured, "expected": self.expected, **self.figures}


def paired_difference(after: Array, before: Array) -> Difference:
    """Mean of after - before over objects, and its standard error; (N,) each, N >= 2."""
    change = after - before
    return Difference(float(change.mean()), float(change.std(ddof=1) / np.sqrt(len(change))))


def run_checks(losses: MaskingLosses) -> list[Check]:
    """All checks of one network, from the losses of two objects or more."""
    attacked, strong = losses.attacked, losses.attacked[STRONG_PGD]
    small = SMALL * max(float((strong - losses.clean).mean()), 0.0)
    by_steps = {"none": losses.clean} | {str(steps): attacked[steps_name(steps)] for steps in STEPS}
    by_eps = {f"{factor:g}": attacked[eps_name(factor)] for factor in FACTORS}
    checks = [
        _vanishing(losses.vanishing),
        _rises("steps", "The loss rises with the steps of PGD", "steps", by_steps, small),
        _rises("eps", "The loss rises with epsilon", "times epsilon", by_eps, small),
        _unbounded(losses.failed),
        _not_weaker("restarts", "Restarts do not weaken PGD", attacked, STRONG_PGD, PGD, small),
        _not_weaker("apgd", "APGD is as strong as PGD", attacked, STRONG_APGD, STRONG_PGD, small),
        _weaker("black_box", "A black-box attack is weaker", SQUARE, attacked[SQUARE], strong, small),
    ]
    for source, loss in losses.transferred.items():
        title, who = f"Transfer from {source} is weaker", f"{STRONG_PGD} on {source}"
        checks.append(_weaker(f"transfer from {source}", title, who, loss, strong, small))
    return checks


def _vanishing(vanishing: Array) -> Check:
    fraction = float(vanishing.mean())
    return Check(
        "gradients",
        "Gradients do not vanish",
        f"{100 * fraction:.1f} % of the clean images have no gradient in any pixel",
        f"at most {100 * NONE:g} %",
        fraction <= NONE,
        {"fraction": fraction},
    )


def _unbounded(failed: Array) -> Check:
    fraction = float(failed.mean())
    return Check(
        "unbounded",
        "Without a bound, every galaxy fails",
        f"{100 * fraction:.1f} % are outliers, or lose z_spec from their PDF, under {UNBOUNDED_PGD}",
        f"at least {100 * (1 - NONE):g} %",
        fraction >= 1 - NONE,
        {"fraction": fraction},
    )


def _rises(name: str, title: str, unit: str, ladder: Mapping[str, Array], small: float) -> Check:
    """The loss at the last rung is above that of the first, and at no rung below the one before."""
    names, values = list(ladder), list(ladder.values())
    total = paired_difference(values[-1], values[0])
    falls = [
        f"{names[i]} to {names[i + 1]}"
        for i in range(len(values) - 1)
        if _is_below(values[i + 1], values[i], small)
    ]
    means = ", ".join(f"{value.mean():.3g}" for value in values)
    fell = f"; falls from {', '.join(falls)}" if falls else ""
    return Check(
        name,
        title,
        f"mean loss {means} at {', '.join(names)} {unit}: {total.text()}{fell}",
        f"a rise of more than {ERRORS:g} errors, and no fall on the way",
        total.mean > ERRORS * total.error and not falls,
        {"mean_loss": {key: float(value.mean()) for key, value in ladder.items()}, **_figures(total)},
    )


def _not_weaker(
    name: str, title: str, attacked: Mapping[str, Array], stronger: str, other: str, small: float
) -> Check:
    gain = paired_difference(attacked[stronger], attacked[other])
    return Check(
        name,
        title,
        f"loss of {stronger} less that of {other}: {gain.text()}",
        f"not below zero by more than {ERRORS:g} errors",
        not _is_below(attacked[stronger], attacked[other], small),
        _figures(gain),
    )


def _weaker(name: str, title: str, what: str, loss: Array, strong: Array, small: float) -> Check:
    gain = paired_difference(loss, strong)
    fraction = float((loss > strong + small).mean())
    allowed = FEW + ERRORS * float(np.sqrt(FEW * (1 - FEW) / len(loss)))
    return Check(
        name,
        title,
        f"loss of {what} less that of {STRONG_PGD}: {gain.text()}; "
        f"higher for {100 * fraction:.1f} % of galaxies",
        f"not above zero by more than {ERRORS:g} errors; higher for at most {100 * allowed:.1f} %",
        not _is_below(strong, loss, small) and fraction <= allowed,
        {**_figures(gain), "fraction_stronger": fraction},
    )


def _is_below(after: Array, before: Array, small: float) -> bool:
    change = paired_difference(after, before)
    return change.mean < -ERRORS * change.error and change.mean < -small


def _figures(change: Difference) -> dict[str, float]:
    return {"difference": change.mean, "standard_error": change.error}


def failures(checks: Mapping[str, Sequence[Check]]) -> list[str]:
    """One line for each failed check, by name of the network."""
    return [
        f"masking check failed: run '{network}': {check.title}: {check.measured}; expected {check.expected}"
        for network, each in checks.items()
        for check in each
        if not check.passed
    ]
