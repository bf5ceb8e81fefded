"""Checks of arguments that several public functions share."""

import operator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hpcphotoz.errors import BadInput


def whole_number(name: str, value: Any) -> int:
    """The value as an int; raises BadInput, which gives the name, for anything but a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise BadInput(f"{name} {value!r}: must be a whole number") from None


def object_places(key: Any, n: int) -> npt.NDArray[np.int64]:
    """The places, 0 to n - 1, that the key of a dataset of n objects means, in its order.

    Args:
        key: a whole number, (m,) of them, or a mask (n,) bool; negative numbers count from the end.
        n: number of objects.

    Raises:
        IndexError: a number beyond the dataset, or a mask of another length.
        TypeError: neither numbers nor a mask.
    """
    array = np.asarray(key.detach().cpu() if isinstance(key, Tensor) else key)
    if array.dtype == np.bool_ and array.ndim == 1:
        if len(array) != n:
            raise IndexError(f"a mask of {len(array):,} for a dataset of {n:,}")
        return np.flatnonzero(array)
    if array.ndim > 1 or not (array.dtype.kind in "iu" or array.shape == (0,)):
        raise TypeError(
            f"dataset[...]: a {type(key).__name__}: want a whole number, a slice, (n,) whole numbers, a mask "
            "of all objects, or the name of a column"
        )
    array = np.atleast_1d(array)
    wrong = (array < -n) | (array >= n)
    if wrong.any():
        raise IndexError(f"object {array[wrong][0]} of a dataset of {n:,}")
    return array.astype(np.int64) % max(n, 1)
