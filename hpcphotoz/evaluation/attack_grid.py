"""Attacks that an evaluation can run: named methods, and the grid of methods and epsilons. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hpcphotoz.config import Attack
from hpcphotoz.config.load import parse
from hpcphotoz.errors import BadInput

QUERIES = 1000  # of the square attack, by default


@dataclass(frozen=True)
class AttackMethod:
    """A named attack without an epsilon."""

    label: str  # in pictures and text
    description: str  # sentence for the report; STEPS and QUERIES stand for their numbers
    curve: Mapping[str, Any]  # its look in plots, as keywords of matplotlib's `plot`
    method: str  # options of the `attack` section
    ball: str = "linf"

    def options(self, steps: int, restarts: int, queries: int = QUERIES) -> dict[str, Any]:
        """Options of the `attack` section: `method`, `ball`, `steps`, `restarts`."""
        if self.method == "fgsm":
            steps = restarts = 1
        if self.method == "square":
            steps, restarts = queries, 1
        return {"method": self.method, "ball": self.ball, "steps": steps, "restarts": restarts}


# Those of one ball from weak to strong. Where curves coincide, FGSM's thin dashes and open circles are
# visible on the wide line of PGD.
METHODS = {
    "square": AttackMethod(
        "Square",
        "Square tries QUERIES, and sees the loss but no gradient",
        {"ls": ":", "lw": 1.5, "marker": "s", "ms": 6, "mfc": "none", "zorder": 4},
        "square",
    ),
    "fgsm": AttackMethod(
        "FGSM",
        "FGSM takes one signed gradient step",
        {"ls": "--", "lw": 1.2, "marker": "o", "ms": 8, "mfc": "none", "zorder": 4},
        "fgsm",
    ),
    "pgd": AttackMethod(
        "PGD",
        "PGD takes STEPS and stays in the ball of epsilon",
        {"ls": "-", "lw": 3, "marker": "s", "ms": 4, "alpha": 0.55, "zorder": 3},
        "pgd",
    ),
    "apgd": AttackMethod(
        "APGD",
        "APGD takes STEPS of sizes that it chooses itself",
        {"ls": "-", "lw": 1.2, "marker": "D", "ms": 5, "mfc": "white", "zorder": 5},
        "apgd",
    ),
    "flux": AttackMethod(
        "PGD-flux",
        "PGD-flux is PGD whose change adds up to zero in every band",
        {"ls": "-.", "lw": 1.5, "marker": "v", "ms": 7, "zorder": 4},
        "pgd",
        "flux",
    ),
    "l2": AttackMethod(
        "PGD-L2",
        "PGD-L2 is PGD whose change has a root mean square of epsilon, over pixels and bands, at most",
        {"ls": ":", "lw": 1.8, "marker": "x", "ms": 7, "zorder": 4},
        "pgd",
        "l2",
    ),
}


class NamedAttack(NamedTuple):
    """One attack of the grid: the method's name and its configuration."""

    name: str
    attack: Attack


def headline_attack(methods: Sequence[str]) -> str:
    """Name of the attack that pictures, calibration and transfer show: the strongest per pixel.

    A flux-conserving attack is weaker and an L2 attack may change a few pixels by much: they are used only if
    nothing else was measured.
    """
    measured = [name for name in METHODS if name in methods]
    per_pixel = [name for name in measured if METHODS[name].ball == "linf"]
    return per_pixel[-1] if per_pixel else measured[0]


def headline_radius(eps: Sequence[float]) -> float:
    """The epsilon of summary, pictures and transfer: 0.1 sky sigma if measured, else the median one."""
    radii = sorted(float(e) for e in eps if e > 0)
    return 0.1 if not radii or 0.1 in radii else radii[(len(radii) - 1) // 2]


def build_attack_grid(
    methods: Sequence[str],
    eps: Sequence[float],
    headline_eps: float,
    *,
    steps: int,
    restarts: int = 1,
    queries: int = QUERIES,
    loss: str = "cross_entropy",
) -> list[NamedAttack]:
    """All attacks of an evaluation, ordered by method as in `METHODS`, then by growing epsilon.

    Args:
        methods: names in `METHODS`; duplicates are ignored.
        eps: sky sigmas; 0 is dropped, and `headline_eps` is added.
        headline_eps: sky sigmas.
        steps, restarts: of all methods but FGSM and the square attack.
        queries: of the square attack.
        loss: loss that the attacks maximise.

    Raises:
        BadInput: no method, an unknown method, or an option out of range.
    """
    if not methods:
        raise BadInput(f"no attack method: give some of {', '.join(METHODS)}")
    for name in methods:
        if name not in METHODS:
            raise BadInput(f"attack method '{name}': want some of {', '.join(METHODS)}")
    if headline_eps <= 0:
        raise BadInput(f"headline epsilon {headline_eps}: must be above 0 sky sigma")
    if restarts > 1 and set(methods) <= {"fgsm", "square"}:
        raise BadInput(
            f"{restarts} restarts of {' and '.join(methods)} alone: add an attack that has restarts"
        )
    radii = sorted({float(e) for e in eps if e} | {float(headline_eps)})
    shared = {"steps": steps, "restarts": restarts, "loss": loss}
    parse({"attack": shared}, "evaluation")  # FGSM ignores steps and restarts, which may be out of range
    return [
        NamedAttack(
            name,
            parse(
                {"attack": {**shared, "eps": radius, **one.options(steps, restarts, queries)}}, "evaluation"
            ).attack,
        )
        for name, one in METHODS.items()
        if name in methods
        for radius in radii
    ]
