"""Label columns to which conditions are applied."""

from typing import Any

import numpy as np
import numpy.typing as npt

BANDS = ("u", "g", "r")


Columns = dict[str, npt.NDArray[Any]]


def table(n: int = 6) -> Columns:
    """Labels with an unknown redshift in row 1 and ids that float64 cannot tell apart."""
    return {
        "z_spec": np.array([0.1, np.nan, 0.3, 0.25, 0.0, -0.1], np.float32)[:n],
        "ebv": np.array([0.02, 0.05, 0.1, 0.2, 0.0, 0.03], np.float32)[:n],
        "object_id": np.array([2**53, 2**53 + 1, -7, 3, 0, 2**63 - 1], np.int64)[:n],
        "ra": np.array([0, 10, 359.9, 180, 45, 90], np.float64)[:n],
        "dec": np.array([-1.25, 1.2, 0, 30, -90, 0.5], np.float64)[:n],
        "sky_sigma": (np.arange(18).reshape(6, 3) / 100).astype(np.float32)[:n],
    }
