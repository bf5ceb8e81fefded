"""Galactic E(B-V) of positions, by the maps that the package dustmaps reads."""

import contextlib
import importlib
import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import nan_if_unknown_ebv
from hpcphotoz.sources.constants import EBV_MAPS
from hpcphotoz.sources.optional_imports import dust_extra, sources_extra

Floats = npt.NDArray[np.floating[Any]]


def galactic_ebv(name: str, ra: Floats, dec: Floats) -> npt.NDArray[np.float64]:
    """Reads the E(B-V) of positions from a map that is installed for dustmaps; nothing is downloaded.

    Both maps have the scale of Schlegel, Finkbeiner & Davis 1998 (SFD).

    Args:
        name: "sfd", or "csfd": SFD without the large-scale structure in it (Chiang 2023).
        ra, dec: (N,) ICRS, deg; NaN: unknown.

    Returns:
        (N,) mag; NaN: the position, or the map's value there, is unknown.

    Raises:
        BadInput: no such map, dustmaps or the map is not installed, or the map cannot be read.
    """
    if name not in EBV_MAPS:
        raise BadInput(f"E(B-V) map '{name}': must be one of {', '.join(EBV_MAPS)}")
    with sources_extra():
        from astropy.coordinates import SkyCoord
    # dustmaps prints a page where it finds no configuration or no map.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with dust_extra():
            module = importlib.import_module(f"dustmaps.{name}")
        try:
            query = getattr(module, f"{name.upper()}Query")()
        except (OSError, KeyError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(
                f"the E(B-V) map {name} cannot be read ({reason}): fetch it by `python -c 'import "
                f"dustmaps.{name}; dustmaps.{name}.fetch()'`"
            ) from None
        known = np.isfinite(ra) & np.isfinite(dec)
        found = np.full(len(ra), np.nan)
        if known.any():
            found[known] = query(SkyCoord(ra[known], dec[known], unit="deg", frame="icrs"))
    return nan_if_unknown_ebv(found).astype(np.float64)
