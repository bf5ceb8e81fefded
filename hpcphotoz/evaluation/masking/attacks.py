"""Attacks whose losses tell whether a network masks its gradients."""

from typing import Any

from hpcphotoz.config import Attack
from hpcphotoz.config.load import parse
from hpcphotoz.evaluation.attack_grid import QUERIES

STEPS = (1, 3, 10, 50)  # of PGD, at the epsilon of the checks
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of that epsilon, for PGD-10
RESTARTS = 5
# Sky sigmas. The last is brighter than most pixels of most galaxies. From there a network may be saturated
# where the gradient of a smaller ball still leads on: a galaxy need fail in one of them only.
LARGE = (1.0, 10.0, 100.0, 1000.0)

PGD = "PGD-50"
STRONG_PGD = f"PGD-50 with {RESTARTS} restarts"
STRONG_APGD = f"APGD-50 with {RESTARTS} restarts"
SQUARE = f"Square with {QUERIES} queries"
LARGE_PGD = {f"PGD-20 at {radius:g} sky sigmas": radius for radius in LARGE}


def masking_attacks(eps: float, loss: str = "cross_entropy") -> dict[str, Attack]:
    """The attacks of the checks by name; an attack that two checks use is made once.

    Args:
        eps: sky sigmas.
        loss: loss that all of them raise: a name in `losses.redshift_losses`.

    Raises:
        BadInput: an option out of range.
    """

    def attack(method: str, steps: int, radius: float = eps, restarts: int = 1) -> Attack:
        options: dict[str, Any] = {"method": method, "steps": steps, "eps": radius, "restarts": restarts}
        return parse({"attack": {**options, "loss": loss}}, "masking checks").attack

    by_steps = {steps_name(steps): attack("pgd", steps) for steps in STEPS}
    by_eps = {eps_name(factor): attack("pgd", 10, factor * eps) for factor in FACTORS}
    return {
        **by_steps,
        **by_eps,
        STRONG_PGD: attack("pgd", 50, restarts=RESTARTS),
        STRONG_APGD: attack("apgd", 50, restarts=RESTARTS),
        SQUARE: attack("square", QUERIES),
        **{name: attack("pgd", 20, radius) for name, radius in LARGE_PGD.items()},
    }


def steps_name(steps: int) -> str:
    """Name of PGD with one restart at the epsilon of the checks."""
    return f"PGD-{steps}"


def eps_name(factor: float) -> str:
    """Name of PGD-10 with one restart at a multiple of the epsilon of the checks."""
    return "PGD-10" if factor == 1 else f"PGD-10 at {factor:g} epsilon"
