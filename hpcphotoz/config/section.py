"""The base class of all configuration sections, with the types and limits that they share."""

import json
import math
from typing import ClassVar, Literal, get_args

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


class CommandText(str):
    """The text of a command line, which stands for a value of any type.

    Text in a file or a call is text: there a number or a boolean is written as one.
    """


class Section(BaseModel):
    """A frozen group of options; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Options that may differ when a run is continued, because they do not change its loss curve.
    may_change: ClassVar[frozenset[str]] = frozenset()
    # Options that may become larger when a run is continued: it is extended.
    may_grow: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_types(cls, value: object, field: ValidationInfo) -> object:
        """Refuse what pydantic would convert: true as 1, 1 as true, and text as a number or a boolean."""
        if isinstance(value, CommandText):
            return str(value)
        name = field.field_name or ""
        annotation = cls.model_fields[name].annotation
        types = (annotation, *get_args(annotation))  # of int, and of Literal["auto"] | int
        if isinstance(value, bool) and annotation in (int, float):
            raise ValueError("want a number")
        if isinstance(value, int | float) and not isinstance(value, bool) and annotation is bool:
            raise ValueError("want true or false, not a number")
        if isinstance(value, str) and annotation is bool:
            raise ValueError("want true or false, without quotes")
        if isinstance(value, str) and (int in types or float in types) and _is_number(value):
            raise ValueError(f"want a number, not text: write {name} = {value.strip()}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_huge_integer(cls, value: object) -> object:
        if isinstance(value, int) and value >= _INTEGER_END:
            raise ValueError("want below 2^31")
        return value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
