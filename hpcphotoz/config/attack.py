"""Section `attack`: how an image is attacked, in training and by the command `attack`."""

from typing import Literal

from pydantic import Field, model_validator

from hpcphotoz.config.section import GREATEST, Section

MAX_QUERIES = 10**6  # of the square attack


class Attack(Section):
    """The attack: its method, its ball, and what it raises. eps and steps are in sky sigmas."""

    method: Literal["fgsm", "pgd", "apgd", "square"] = Field(
        "pgd",
        description="fgsm: one step; pgd: several steps, each projected onto the ball; apgd: PGD that "
        "chooses its step sizes; square: random search that needs no gradient, not for training",
    )
    ball: Literal["linf", "l2", "flux"] = Field(
        "linf",
        description="what eps bounds; linf: the change of every pixel; l2: its root mean square over a "
        "stamp; flux: as linf, and the flux of every band is conserved",
    )
    eps: float = Field(0.1, ge=0, le=GREATEST, description="radius of the ball, in sky sigmas of each band")
    steps: int = Field(3, ge=1, description="pgd, apgd: number of steps; square: number of queries")
    step_size: float = Field(
        0.0, ge=0, le=GREATEST, description="pgd: length of a step in sky sigmas; 0: 2.5 eps / steps"
    )
    random_start: bool = Field(True, description="pgd, apgd: start at a random point of the ball")
    restarts: int = Field(
        1, ge=1, le=4096, description="pgd, apgd: number of random starts, of which the best is kept"
    )
    loss: Literal["cross_entropy", "margin", "probability_margin", "shift", "crps"] = Field(
        "cross_entropy",
        description="what the attack raises: the cross-entropy over bins, the DLR margin, the margin of "
        "probabilities, |<z> - z_spec|, or the CRPS",
    )
    target: Literal["away", "redshift", "shift"] = Field(
        "away",
        description="where the attack drives the redshift; away: from z_spec; redshift: to target_value; "
        "shift: to z_spec + target_value (1 + z_spec)",
    )
    target_value: float = Field(
        0.0, ge=-GREATEST, le=GREATEST, description="target redshift, shift: the value of the target"
    )
    stop: float = Field(
        0.0,
        ge=0,
        le=GREATEST,
        description="stop attacking an object when |<z> - z_spec| exceeds this times 1 + z_spec (with a "
        "target: when |<z> - target| is below it); 0: never",
    )

    @model_validator(mode="after")
    def _options_fit(self) -> "Attack":
        if self.method == "fgsm" and self.restarts > 1:
            raise ValueError(
                f"restarts {self.restarts}: fgsm has no random start to repeat: want pgd or apgd"
            )
        if self.method == "fgsm" and self.stop:
            raise ValueError(
                f"stop {self.stop:g}: fgsm is one step, nothing comes after it: want pgd or apgd"
            )
        if self.step_size and self.method != "pgd":
            raise ValueError(f"step_size {self.step_size:g}: {self.method} has its own: want pgd")
        if self.method == "square":
            if self.ball != "linf":
                raise ValueError(f"ball {self.ball}: square knows linf alone")
            if self.restarts > 1:
                raise ValueError(f"restarts {self.restarts}: square is one search: want more steps")
            if not self.random_start:
                raise ValueError("random_start false: square starts with random stripes")
            if self.steps > MAX_QUERIES:
                raise ValueError(f"steps {self.steps}: square takes {MAX_QUERIES} queries at most")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts {self.restarts} without random_start are one")
        if self.target_value and self.target == "away":
            raise ValueError(
                f"target_value {self.target_value} without a target: want target redshift or shift"
            )
        return self

    def conflict(self, z_min: float, z_max: float) -> str | None:
        """Why the target cannot be had with redshift bins on [z_min, z_max); None if it can."""
        value, span = self.target_value, f"[{z_min:g}, {z_max:g})"
        if self.target == "redshift" and not z_min <= value < z_max:
            return f"target redshift {value:g}: outside the bins {span}"
        if self.target == "shift" and abs(value) * (1 + z_min) >= z_max - z_min:
            return f"target shift {value:g}: carries every galaxy out of the bins {span}"
        return None
