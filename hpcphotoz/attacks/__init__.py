"""Adversarial attacks: loops over kernels, on any `model(images, ebv)` or `model(images)`.

Flux is in nanomaggies, epsilon per object and band. `pgd`, `fgsm`, `apgd`, `square` and `minimal_eps` are
functions; `FGSM`, `PGD` and `APGD` hold the same for callers that are used to torchattacks; `perturb` runs
what a configuration describes, in sky sigmas.
"""

from hpcphotoz.attacks.apgd import apgd
from hpcphotoz.attacks.ball import Ball, RandomStart
from hpcphotoz.attacks.from_config import perturb
from hpcphotoz.attacks.losses import (
    Condition,
    cross_entropy,
    crps,
    higher,
    lower,
    margin,
    moved_by,
    outlier,
    probability_margin,
    reached,
    shift,
    toward,
)
from hpcphotoz.attacks.minimal_eps import minimal_eps
from hpcphotoz.attacks.passes.gradient import AS_IS, Model, Passes, frozen
from hpcphotoz.attacks.pgd import fgsm, pgd
from hpcphotoz.attacks.square import square
from hpcphotoz.attacks.torchattacks_api import APGD, FGSM, PGD
from hpcphotoz.kernels.backend import uses_triton

__all__ = [
    "APGD",
    "AS_IS",
    "FGSM",
    "PGD",
    "Ball",
    "Condition",
    "Model",
    "Passes",
    "RandomStart",
    "apgd",
    "cross_entropy",
    "crps",
    "fgsm",
    "frozen",
    "uses_triton",
    "higher",
    "lower",
    "margin",
    "minimal_eps",
    "moved_by",
    "outlier",
    "perturb",
    "pgd",
    "probability_margin",
    "reached",
    "shift",
    "square",
    "toward",
]
