"""What is simulated, trained and measured: sizes and settings of the full form and of the quick one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hpcphotoz.config import Config
from hpcphotoz.config.load import configure

STANDARD, ADVERSARIAL, RELU = "cnn-standard", "cnn-adversarial", "cnn-relu"
INCEPTION, ROBUST_INCEPTION = "inception-standard", "inception-adversarial"
SKY = "-sky"  # ends the names of networks that are trained on galaxies in real sky


@dataclass(frozen=True)
class Galaxies:
    """A simulated set: arguments of `hpcphotoz simulate`."""

    objects: int
    seed: int
    in_real_sky: bool = False


@dataclass(frozen=True)
class Adversaries:
    """A point of the trade-off surface: how a network is trained adversarially."""

    fraction: float  # of every batch that is attacked
    eps: float  # sky sigmas
    steps: int  # K: FGSM for 1, else PGD

    @property
    def options(self) -> dict[str, object]:
        """Options of sections `adversarial` and `attack` by their bare names."""
        method = "fgsm" if self.steps == 1 else "pgd"
        return {"fraction": self.fraction, "method": method, "eps": self.eps, "steps": self.steps}


@dataclass(frozen=True)
class Training:
    """A network and how it is trained, but for the seed."""

    name: str
    data: str  # name of a set
    options: Mapping[str, object]  # of the configuration, by their bare names
    adversaries: Adversaries | None = None  # None: clean images alone
    group: str = "main"  # "main", "surface" or "sky"

    def settings(self, seed: int) -> dict[str, object]:
        """Options of a run by their bare names; options that are not named have their defaults."""
        attacked = self.adversaries.options if self.adversaries else {}
        return {**self.options, **attacked, "seed": seed}

    def config(self, seed: int) -> Config:
        """The configuration of a run."""
        return configure("benchmarks.paper", **self.settings(seed))

    def run(self, seed: int) -> str:
        """Name of the run of a seed."""
        return f"{self.name}-seed-{seed}"


@dataclass(frozen=True)
class Plan:
    """Sizes and settings.

    Attributes:
        sets: name -> galaxies; "train" and "sky-train" hold the validation part of the split too.
        validation: that part, a fraction.
        seeds: of the trainings.
        epochs: by network: "cnn", "inception" and "sky", the CNN on the galaxies in real sky.
        batch, rate: galaxies of a step, and the peak of the learning rate.
        crop, binning: what the networks see of a stamp; see options `model.crop` and `model.binning`.
        divisor: of the Inception's numbers of channels.
        centre: of the trade-off surface; how the adversarial networks are trained.
        axes: values of fraction, eps and steps; one at a time differs from the centre, or all (`grid`).
        eps: of the curves, sky sigmas.
        headline: epsilon of transfer, trade-off and masking, sky sigmas.
        steps: of PGD and APGD in curves and transfer.
        curve_objects, transfer_objects: test galaxies that are attacked.
        masking_objects: test galaxies of `evaluate --check-masking`, which takes 1,150 gradients of each.
        limit_objects: test galaxies whose pixels' information on the redshift is computed.
    """

    sets: Mapping[str, Galaxies]
    seeds: Sequence[int] = (0, 1, 2)
    validation: float = 1 / 9
    epochs: Mapping[str, int] = field(default_factory=lambda: {"cnn": 5, "inception": 4, "sky": 10})
    batch: int = 128
    rate: float = 1.2e-2
    crop: int = 24
    binning: int = 2
    divisor: int = 4
    centre: Adversaries = Adversaries(0.5, 0.15, 1)
    axes: tuple[Sequence[float], Sequence[float], Sequence[int]] = (
        (0.125, 0.25, 0.5, 1.0),
        (0.05, 0.15, 0.3),
        (1, 3, 7),
    )
    grid: bool = False
    eps: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.5)
    headline: float = 0.1
    steps: int = 10
    curve_objects: int = 1024
    transfer_objects: int = 512
    masking_objects: int = 64
    limit_objects: int = 512

    @property
    def points(self) -> list[Adversaries]:
        """Points of the trade-off surface, the centre first; fraction 0 is the standard network."""
        found = [self.centre]
        for place, values in enumerate(self.axes):
            for value in values:
                at: list[Any] = [self.centre.fraction, self.centre.eps, self.centre.steps]
                at[place] = value
                found.append(Adversaries(*at))
        if self.grid:
            found += [Adversaries(*at) for at in product(*self.axes)]
        return list(dict.fromkeys(found))

    @property
    def trainings(self) -> list[Training]:
        """All trainings, in the order of their importance."""
        cnn: dict[str, object] = {"name": "cnn", "crop": self.crop, "binning": self.binning}
        narrow = {"divisor": self.divisor, "crop": self.crop, "binning": self.binning}
        inception: dict[str, object] = {
            "name": "benchmarks.paper.networks:narrow_inception",
            "options": narrow,
        }
        cnn |= self._shared("cnn")
        inception |= self._shared("inception")
        in_sky = {**cnn, **self._shared("sky")}
        centre = self.centre
        return [
            Training(STANDARD, "train", cnn),
            Training(ADVERSARIAL, "train", cnn, centre),
            Training(INCEPTION, "train", inception),
            Training(ROBUST_INCEPTION, "train", inception, centre),
            Training(RELU, "train", {**cnn, "relu_logits": True}),
            Training(STANDARD + SKY, "sky-train", in_sky, group="sky"),
            Training(ADVERSARIAL + SKY, "sky-train", in_sky, centre, group="sky"),
            *(
                Training(point_name(point), "train", cnn, point, group="surface")
                for point in self.points
                if point != centre
            ),
        ]

    def _shared(self, epochs: str) -> dict[str, object]:
        return {
            **{"validation": self.validation, "label_width": 4.0, "precision": "fp32"},
            **{"algorithm": "muon", "learning_rate": self.rate},
            **{"epochs": self.epochs[epochs], "global_batch": self.batch},
        }


def point_name(point: Adversaries) -> str:
    """Name of the network of a point of the trade-off surface."""
    return f"cnn-f{point.fraction:g}-eps{point.eps:g}-k{point.steps}"


FULL = Plan(
    {
        "train": Galaxies(36_864, 11),  # 32,768 for training, 4,096 for validation
        "test": Galaxies(10_240, 12),
        "sky-train": Galaxies(9_216, 13, in_real_sky=True),
        "sky-test": Galaxies(2_048, 14, in_real_sky=True),
    }
)
QUICK = Plan(
    {
        "train": Galaxies(576, 11),
        "test": Galaxies(128, 12),
        "sky-train": Galaxies(192, 13, in_real_sky=True),
        "sky-test": Galaxies(64, 14, in_real_sky=True),
    },
    seeds=(0,),
    epochs={"cnn": 2, "inception": 1, "sky": 1},
    batch=32,
    divisor=16,
    axes=((0.5, 1.0), (0.15,), (1,)),
    eps=(0.05, 0.1),
    steps=3,
    curve_objects=64,
    transfer_objects=32,
    masking_objects=4,
    limit_objects=16,
)
