"""The attacks that an evaluation knows by name, and the configuration each is; needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from hpcphotoz.config import Attack, parse
from hpcphotoz.errors import BadInput


@dataclass(frozen=True)
class Method:
    """An attack, its epsilon left open."""

    label: str  # in pictures and text
    text: str  # what it does, for a reader; STEPS: as many steps as were chosen
    method: Literal["fgsm", "pgd", "apgd"]
    ball: Literal["linf", "l2", "flux"] = "linf"

    def options(self, steps: int, restarts: int) -> dict[str, Any]:
        """What a configuration says of it: `method`, `ball`, `steps`, `restarts`."""
        one = self.method == "fgsm"
        return {
            "method": self.method,
            "ball": self.ball,
            "steps": 1 if one else steps,
            "restarts": 1 if one else restarts,
        }


METHODS = {
    "fgsm": Method("FGSM", "FGSM takes one signed gradient step", "fgsm"),
    "pgd": Method("PGD", "PGD takes STEPS and stays in the ball of epsilon", "pgd"),
    "apgd": Method("APGD", "APGD takes STEPS of sizes that it chooses itself", "apgd"),
    "flux": Method("PGD-flux", "PGD-flux is PGD whose change adds up to zero in every band", "pgd", "flux"),
    "l2": Method(
        "PGD-L2",
        "PGD-L2 is PGD whose change has a root mean square of epsilon, over pixels and bands, at most",
        "pgd",
        "l2",
    ),
}
_HEADLINE = ("apgd", "pgd", "fgsm", "flux", "l2")


class Planned(NamedTuple):
    """One attack of an evaluation."""

    name: str
    attack: Attack


def headline(methods: Sequence[str]) -> str:
    """Which attack pictures, calibration and transfer show: the strongest on single pixels.

    APGD before PGD before FGSM, whose ball is the same; a flux-conserving one is weaker, and an L2 one may
    change few pixels by much, so that both are shown only where nothing else was measured.
    """
    return next(name for name in _HEADLINE if name in methods)


def planned(
    methods: Sequence[str],
    eps: Sequence[float],
    headline_eps: float,
    *,
    steps: int,
    restarts: int = 1,
    loss: str = "cross_entropy",
) -> list[Planned]:
    """Every attack of an evaluation: by method in the order of `METHODS`, then by growing epsilon.

    Args:
        methods: names in `METHODS`; one given twice counts once.
        eps: sky sigmas; 0 is dropped, `headline_eps` added.
        headline_eps: sky sigmas.
        steps, restarts: of all methods but FGSM.
        loss: what is raised.

    Raises:
        BadInput: an unknown method, none, or an option out of range.
    """
    if not methods:
        raise BadInput(f"no attack method: give some of {', '.join(METHODS)}")
    for name in methods:
        if name not in METHODS:
            raise BadInput(f"attack method '{name}': want some of {', '.join(METHODS)}")
    if headline_eps <= 0:
        raise BadInput(f"headline epsilon {headline_eps}: must be above 0 sky sigma")
    if restarts > 1 and set(methods) == {"fgsm"}:
        raise BadInput(f"{restarts} restarts of FGSM alone: it has no random start: add another attack")
    radii = sorted({float(e) for e in eps if e} | {float(headline_eps)})
    shared = {"steps": steps, "restarts": restarts, "loss": loss}
    parse({"attack": shared}, "evaluation")  # FGSM's own steps and restarts would hide what is out of range
    return [
        Planned(
            name,
            parse({"attack": {**shared, "eps": radius, **one.options(steps, restarts)}}, "evaluation").attack,
        )
        for name, one in METHODS.items()
        if name in methods
        for radius in radii
    ]
