"""The base class of all configuration sections, with the types and limits that they share."""

import json
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

Switch = Literal["auto", "on", "off"]
# The largest radius, width or weight. It lies far above any sensible value and far below 3.4e38, the end of
# float32, because options are multiplied with each other.
GREATEST = 1e6
_INTEGER_END = 1 << 31  # sizes and counts are multiplied in 64 bits


def option_text(value: object) -> str:
    """The value of an option as TOML writes it: true, "sgd", [1, 2]; None, which TOML lacks, is null."""
    if isinstance(value, dict):
        inside = ", ".join(f"{key} = {option_text(entry)}" for key, entry in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(option_text, value))}]"
    # Strings and booleans are written the same way in JSON and TOML.
    return json.dumps(value) if isinstance(value, bool | str | None) else repr(value)


class Section(BaseModel):
    """A frozen group of options; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Options that may differ when a run is continued, because they do not change its loss curve.
    may_change: ClassVar[frozenset[str]] = frozenset()
    # Options that may become larger when a run is continued: it is extended.
    may_grow: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_boolean_as_number(cls, value: object, field: ValidationInfo) -> object:
        numeric = cls.model_fields[field.field_name or ""].annotation in (int, float)
        if numeric and isinstance(value, bool):  # pydantic would read true as 1
            raise ValueError("want a number")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_huge_integer(cls, value: object) -> object:
        if isinstance(value, int) and value >= _INTEGER_END:
            raise ValueError("want below 2^31")
        return value
