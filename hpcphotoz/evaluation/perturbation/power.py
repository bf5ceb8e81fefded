"""Power of a perturbation by band, by distance from the centre and by spatial frequency.

A perturbation is in units of the sky sigma of its object and band. Its power is the mean square over pixels;
a change by plus or minus epsilon of every pixel has the power epsilon^2.
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_RINGS = 16  # of distance from the centre, and of frequency


class PowerMaps:
    """Means over the pixels of a stamp by ring of distance, and over its modes by ring of frequency.

    Pixels in the corners of the stamp, and modes beyond the Nyquist frequency of one axis, are in no ring.

    Args:
        side: pixels a side of the stamp.
        pixel_scale: arcsec.
    """

    def __init__(self, side: int, pixel_scale: float) -> None:
        self._side, self._scale = side, pixel_scale
        self._rings = min(_RINGS, side // 2)

    @cached_property
    def radius_edges(self) -> Floats:
        """Edges of the rings of distance from the centre, arcsec, (rings + 1,)."""
        return np.linspace(0, self._side / 2 * self._scale, self._rings + 1)

    @cached_property
    def frequency_edges(self) -> Floats:
        """Edges of the rings of frequency, cycles per arcsec, up to the Nyquist frequency, (rings + 1,)."""
        return np.linspace(0, 0.5 / self._scale, self._rings + 1)

    @cached_property
    def _radius_weights(self) -> Floats:
        at = (np.arange(self._side) - (self._side - 1) / 2) * self._scale
        return _mean_weights(np.hypot(at[:, None], at), self.radius_edges)

    @cached_property
    def _frequency_weights(self) -> Floats:
        at = np.fft.fftfreq(self._side, self._scale)
        return _mean_weights(np.hypot(at[:, None], at), self.frequency_edges)

    @cached_property
    def radius_pixels(self) -> Floats:
        """Number of pixels of each ring of distance, (rings,)."""
        return np.asarray((self._radius_weights > 0).sum(axis=(1, 2)), np.float64)

    def by_band(self, delta: npt.NDArray[np.float32]) -> Floats:
        """Mean square over the pixels, (N, B), of perturbations (N, B, H, W) in sky sigmas."""
        return np.asarray(np.mean(np.square(delta, dtype=np.float64), axis=(2, 3)))

    def by_radius(self, delta: npt.NDArray[np.float32]) -> Floats:
        """Mean square over the pixels of each ring of distance and the bands, (N, rings)."""
        square = np.square(delta, dtype=np.float64).mean(axis=1)
        return np.asarray(np.einsum("nyx,ryx->nr", square, self._radius_weights, optimize=True))

    def by_frequency(self, delta: npt.NDArray[np.float32]) -> Floats:
        """Mean of |FFT|^2 / pixels over the modes of each ring of frequency and the bands, (N, rings).

        Independent noise of sigma s in every pixel has s^2 at all frequencies (Parseval).
        """
        modes = np.fft.fft2(delta.astype(np.float64), norm="ortho")
        power = np.square(np.abs(modes)).mean(axis=1)
        return np.asarray(np.einsum("nyx,ryx->nr", power, self._frequency_weights, optimize=True))


def _mean_weights(at: Floats, edges: Floats) -> Floats:
    """Weights of the mean over each ring, (rings, H, W)."""
    ring = np.digitize(at, edges) - 1
    ring[np.isclose(at, edges[-1])] = len(edges) - 2  # the Nyquist frequency, which rounding may put beyond
    masks = np.stack([ring == k for k in range(len(edges) - 1)])
    count = masks.sum(axis=(1, 2))
    return np.asarray(masks / np.maximum(count, 1)[:, None, None])
