"""Columns by which metrics are binned: labels, aperture photometry and the extra columns of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.baseline.photometry import RADII, apertures, shown_aperture
from hpcphotoz.evaluation.magnitudes import ab_magnitude, magnitude_band

Floats = npt.NDArray[np.float64]

STANDARD = ("z_spec", "aperture_mag", "ebv", "aperture_snr")  # in which metrics are always binned


@dataclass(frozen=True)
class Binning:
    """Bins of a column: edges, or None for bins of equal numbers of objects."""

    column: str
    edges: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> "Binning":
        """From `COLUMN` or `COLUMN:EDGE,EDGE,...`.

        Raises:
            BadInput: no name, or fewer than two growing edges.
        """
        name, colon, numbers = text.partition(":")
        try:
            edges = tuple(float(number) for number in numbers.split(",")) if colon else None
        except ValueError:
            edges = ()
        growing = edges is None or (
            len(edges) > 1 and bool((np.diff(edges) > 0).all() and np.isfinite(edges).all())
        )
        if not name or not growing:
            raise BadInput(f"bins '{text}': want COLUMN, or COLUMN:EDGE,EDGE,... with growing edges")
        return cls(name, edges)

    def groups(self, values: npt.NDArray[np.float32], edges: Sequence[float]) -> npt.NDArray[np.int64]:
        """Number of the bin that holds each value (m,), -1 if none does; the last bin has both its edges."""
        top, limits = len(edges) - 2, np.asarray(edges, np.float32)  # as values: float32(0.7) is below 0.7
        place = np.searchsorted(limits, values, side="right") - 1
        place = np.where(values == limits[-1], top, place)
        return np.where(np.isfinite(values) & (place <= top), place, -1).astype(np.int64)


class ObjectColumns:
    """Reads columns from batches of stamps, as float32 with NaN where a value is unknown."""

    def __init__(self, data: Path, header: Header, names: Sequence[str]) -> None:
        """Raises BadInput for a name that is no column of numbers of the dataset."""
        self.names = tuple(names)
        self._band = magnitude_band(header.bands)
        aperture = shown_aperture(header)
        self._weight = apertures(header)[aperture].astype(np.float64)
        band, radius = header.bands[self._band], RADII[aperture]
        self.meaning = {
            "z_spec": "spectroscopic redshift",
            "ebv": "E(B-V) (mag)",
            "aperture_mag": f"{band} magnitude (AB) within {radius:g} arcsec, as observed",
            "aperture_snr": f"signal over sky noise of the flux in {band} within {radius:g} arcsec",
            "ra": "right ascension (deg)",
            "dec": "declination (deg)",
        }
        self._source: dict[str, tuple[str, int | None]] = {}
        for k, one in enumerate(header.bands):
            self.meaning[f"sky_sigma_{one}"] = f"sky sigma in {one} (nMgy a pixel)"
            self._source[f"sky_sigma_{one}"] = ("sky_sigma", k)
        for extra in header.extra:
            if extra.is_pixels or extra.dtype.startswith("S"):
                continue
            unit = f" ({extra.unit})" if extra.unit else ""
            places = enumerate(header.bands) if extra.shape else [(None, "")]
            for place, one in places:
                name = f"{extra.name}_{one}" if extra.shape else extra.name
                self.meaning[name], self._source[name] = f"{name}{unit}", (extra.name, place)
        for name in self.names:
            if name not in self.meaning:
                raise BadInput(
                    f"{data}: has no column '{name}' of numbers to bin by: want one of "
                    f"{', '.join(sorted(self.meaning))}"
                )

    def __call__(self, stamps: Stamps) -> npt.NDArray[np.float32]:
        """The columns of a batch, (columns, N)."""
        flux = np.einsum("nyx,yx->n", stamps.images[:, self._band], self._weight)
        noise = np.sqrt((self._weight**2).sum()) * stamps.sky_sigma[:, self._band]
        found = np.full((len(self.names), len(stamps)), np.nan, np.float32)
        for row, name in enumerate(self.names):
            if name in self._source:
                array, place = self._source[name]
                values = stamps.sky_sigma if array == "sky_sigma" else stamps.extra[array]
                with np.errstate(over="ignore"):  # beyond float32: infinite, in no bin
                    found[row] = values if place is None else values[:, place]
            elif name == "aperture_mag":
                found[row] = ab_magnitude(flux)
            elif name == "aperture_snr":
                found[row] = flux / noise
            else:
                found[row] = getattr(stamps, name)
        return found
