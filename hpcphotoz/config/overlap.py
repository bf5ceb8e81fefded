"""Section `overlap`: whether attack and training run at the same time, and where."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hpcphotoz.config.section import Section

_OF_RANKS = ("attackers", "max_staleness", "images_transfer", "weights_transfer")


class Overlap(Section):
    """Whether attack and training run at the same time, and on which ranks."""

    # With staleness 0 and lossless transfer every mode gives the same loss curve.
    may_change: ClassVar[frozenset[str]] = frozenset({"mode", "attackers"})

    mode: Literal["off", "streams", "ranks"] = Field(
        "off",
        description="off: attack, then train; streams: clean passes run beside the attack on a second CUDA "
        "stream; ranks: some ranks are attackers, the others are learners",
    )
    attackers: Literal["auto"] | int = Field(
        "auto", description="mode ranks: number of attackers; auto: from the measured cost of both"
    )
    max_staleness: int = Field(
        0,
        ge=0,
        le=2,
        description="mode ranks: staleness, the optimiser steps by which the attacked weights may be behind",
    )
    images_transfer: Literal["fp32", "bf16", "int8"] = Field(
        "fp32",
        description="mode ranks: encoding of attacked images on their way to learners; bf16, int8: of their "
        "changes",
    )
    weights_transfer: Literal["fp32", "bf16"] = Field(
        "fp32", description="mode ranks: encoding of the weights on their way to attackers"
    )

    @field_validator("attackers", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: object) -> object:
        if value != "auto" and not str(value).isdecimal() or str(value) == "0":
            raise ValueError("want auto, or the number of ranks that attack")
        return value

    @model_validator(mode="after")
    def _options_fit(self) -> "Overlap":
        if self.mode != "ranks":
            for name in _OF_RANKS:
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    raise ValueError(f"{name} {value}: has an effect only with mode ranks")
        return self

    def conflict(self, fraction: float) -> str | None:
        """Why the mode cannot be had with that fraction of attacked objects; None if it can."""
        if self.mode == "ranks" and not fraction:
            return "overlap.mode ranks with adversarial.fraction 0: attackers would have nothing to do"
        return None
