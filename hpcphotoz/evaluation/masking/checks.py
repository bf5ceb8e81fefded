"""Checks that a network does not hide from attacks by masking its gradients.

They are those of Athalye et al. 2018 (arXiv:1802.00420, section 3.1) and Carlini et al. 2019
(arXiv:1902.06705, sections 5 and 6). A network that fails one may look robust because attacks on it fail.

Losses are compared object by object: the error of a mean difference is that of paired samples, and a
difference fails a check only if it is both larger than 3 errors and larger than 1 % of the rise of the loss
under the strong PGD. A loss rises if its mean does by 3 errors, or if that of nearly every object does: rises
differ by far more than they scatter, and of few objects one brings the error near the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hpcphotoz.evaluation.masking.attacks import (
    FACTORS,
    LARGE,
    PGD,
    SQUARE,
    STEPS,
    STRONG_APGD,
    STRONG_PGD,
    eps_name,
    steps_name,
)
from hpcphotoz.evaluation.masking.measure import Array, MaskingLosses

ERRORS = 3.0  # standard errors by which a difference must differ from zero
SMALL = 0.01  # of the rise of the loss under the strong PGD: a smaller difference is of no account
FEW = 0.05  # fraction of objects of which a weaker attack may be the stronger one, besides its own error
RISING = 0.95  # fraction of objects whose loss rises that is a rise, whatever the error of the mean
FEW_WITHOUT = 0.01  # fraction of objects that may lack a gradient, or survive large perturbations


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
    by_steps = {"0": losses.clean} | {str(steps): attacked[steps_name(steps)] for steps in STEPS}
    by_eps = {f"{factor:g}": attacked[eps_name(factor)] for factor in FACTORS}
    radii = f"{', '.join(f'{radius:g}' for radius in LARGE[:-1])} or {LARGE[-1]:g}"
    checks = [
        _fraction("gradients", "clean images have a gradient", 1 - losses.vanishing),
        _rises("steps", "the loss rises with the steps of PGD", by_steps, small),
        _rises("eps", "the loss rises with epsilon, in multiples", by_eps, small),
        _fraction("unbounded", f"galaxies fail under PGD-20 at {radii} sky sigmas", losses.failed),
        _not_weaker("restarts", attacked, STRONG_PGD, PGD, small),
        _not_weaker("apgd", attacked, STRONG_APGD, STRONG_PGD, small),
        _weaker("black_box", SQUARE, attacked[SQUARE], strong, small),
    ]
    for source, loss in losses.transferred.items():
        checks.append(_weaker(f"transfer from {source}", f"{STRONG_PGD} on {source}", loss, strong, small))
    return checks


def _fraction(name: str, title: str, holds: Array) -> Check:
    fraction = float(holds.mean())
    measured, expected = f"{100 * fraction:.1f} %", f"at least {100 * (1 - FEW_WITHOUT):g} %"
    return Check(name, title, measured, expected, fraction >= 1 - FEW_WITHOUT, {"fraction": fraction})


def _rises(name: str, title: str, ladder: Mapping[str, Array], small: float) -> Check:
    """The loss at the last rung is above that at the first, and at no rung below that at the one before."""
    rungs = list(ladder.items())
    first, last = rungs[0][1], rungs[-1][1]
    total = paired_difference(last, first)
    falls = [f"{a} to {b}" for (a, x), (b, y) in pairwise(rungs) if _is_below(y, x, small)]
    means = ", ".join(f"{loss.mean():.3g}" for loss in ladder.values())
    risen = float((last > first).mean())
    rises = total.mean > ERRORS * total.error or (risen >= RISING and total.mean > small)
    return Check(
        name,
        f"{title}: {', '.join(ladder)}",
        f"{means}: {total.text()}, of {100 * risen:.0f} %"
        + (f"; falls from {' and '.join(falls)}" if falls else ""),
        f"a rise above {ERRORS:g} errors, or of {100 * RISING:g} % of the galaxies, without a fall",
        rises and not falls,
        {
            "fraction_risen": risen,
            "mean_loss": {key: float(loss.mean()) for key, loss in ladder.items()},
            **_figures(total),
        },
    )


def _not_weaker(name: str, attacked: Mapping[str, Array], one: str, other: str, small: float) -> Check:
    gain = paired_difference(attacked[one], attacked[other])
    passed = not _is_below(attacked[one], attacked[other], small)
    title = f"{one} is at least as strong as {other}"
    return Check(name, title, gain.text(), "not below 0", passed, _figures(gain))


def _weaker(name: str, attack: str, loss: Array, strong: Array, small: float) -> Check:
    gain, fraction = paired_difference(loss, strong), float((loss > strong + small).mean())
    allowed = FEW + ERRORS * float(np.sqrt(FEW * (1 - FEW) / len(loss)))
    return Check(
        name,
        f"{attack} is weaker than {STRONG_PGD}",
        f"{gain.text()}; stronger for {100 * fraction:.1f} %",
        f"not above 0; at most {100 * allowed:.1f} %",
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
        f"masking check failed: run '{network}': {check.title}: measured {check.measured}; "
        f"expected {check.expected}"
        for network, each in checks.items()
        for check in each
        if not check.passed
    ]
