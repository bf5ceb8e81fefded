"""Converts object identifiers of any kind to int64, by one rule for every source."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput

Ids = npt.NDArray[np.int64]

RULE = (
    "whole numbers keep their 64 bits (from 2^63 on they are stored less 2^64); of other text, the upper 63 "
    "bits of BLAKE2b-64"
)
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_REAL = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?[0-9]+[eE]\+[0-9]+")
_EXACT = re.compile(r"([+-]?[0-9]{1,16})\.0*")
_NOTHING = ("", "nan", "none", "null", "--")
_LOST = "may have lost digits as a floating-point number: write ids as whole numbers or text"
_ABSENT = "is no id: every object needs one"


def identifiers(values: npt.NDArray[Any], fail: Callable[[int, str], BadInput]) -> Ids:
    """Converts identifiers to int64 by `RULE`: reversible for numbers, whatever type holds them.

    The values (N,), maybe masked, are integers, whole floating-point numbers, or text as bytes, str or Python
    objects; `fail` makes the error from a place there and the problem.

    Raises:
        BadInput: an id that is absent, is not text, or is a floating-point number that may have lost digits.
    """
    absent = np.ma.getmaskarray(values)
    if absent.any():
        raise fail(int(np.argmax(absent)), _ABSENT)
    values = np.asarray(np.ma.getdata(values))
    kind = values.dtype.kind
    if kind == "i":
        return values.astype(np.int64)
    if kind == "u":
        return values.astype(np.uint64).view(np.int64)
    if kind == "f":
        with np.errstate(invalid="ignore"):
            exact = (np.abs(values) < 2.0 ** (np.finfo(values.dtype).nmant + 1)) & (values % 1 == 0)
        if not exact.all():
            place = int(np.argmin(exact))
            raise fail(place, _ABSENT if np.isnan(values[place]) else _LOST)
        return values.astype(np.int64)
    if kind not in "SUOT":
        raise fail(0, f"is of type {values.dtype}: ids are integers or text")
    found = np.empty(len(values), np.int64)
    for k, value in enumerate(values.tolist()):
        try:
            found[k] = identifier(value)
        except ValueError as error:
            raise fail(k, str(error)) from None
    return found


def identifier(value: bytes | str | int) -> int:
    """Converts one identifier: the number 7 and the text "7" give the same, "007" gives another.

    Raises:
        ValueError: the identifier cannot be used; the message ends a sentence that begins with its value.
    """
    try:
        text = (value.decode() if isinstance(value, bytes) else str(value)).strip()
    except UnicodeDecodeError:
        raise ValueError("is not text") from None
    if text.lower() in _NOTHING:
        raise ValueError(_ABSENT)
    if _REAL.fullmatch(text):
        exact = _EXACT.fullmatch(text)
        if exact is None or abs(int(exact[1])) >= 2**53:
            raise ValueError(_LOST)
        return int(exact[1])
    number = int(text) if _WHOLE.fullmatch(text) else None
    if number is not None and str(number) == text and -(2**63) <= number < 2**64:
        return number if number < 2**63 else number - 2**64
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
