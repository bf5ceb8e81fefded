"""Checks of arguments that several public functions share."""

import operator
from typing import Any

from hpcphotoz.errors import BadInput


def whole_number(name: str, value: Any) -> int:
    """The value as an int; raises BadInput, which gives the name, for anything but a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise BadInput(f"{name} {value!r}: must be a whole number") from None
