"""A calibration of PDFs: weights of the networks in their mean, a temperature, and a map of the CDF."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]

_TINY = 1e-38  # float32 probabilities below it are 0: of a bin that is one, the temperature knows no more
_GRID = np.linspace(0.0, 1.0, 2049)  # of the CDF, on which its map is tabulated


@dataclass(frozen=True)
class Calibration:
    """What was fitted to objects of known redshift, to be applied to the mean PDF of an ensemble.

    First the temperature T: p_k^(1/T), normalised; for one network the softmax of its logits / T (Guo et al.
    2017, arXiv:1706.04599). Then the map of the CDF, F -> R(F), where R' is the distribution of the PIT: the
    density is multiplied by R'(F(z)), as Bordoloi, Lilly & Amara (2010, doi:10.1111/j.1365-2966.2010.16765.x)
    do. log R' is a sum of few Legendre polynomials (Neyman 1937), so that R always increases.

    Attributes:
        weights: of the networks in the mean, which add up to 1; (): equal ones.
        temperature: T, above 0; above 1 widens PDFs.
        pit: coefficients of the polynomials of degree 1, 2, ... of unit variance on [0, 1]; (): no map.
    """

    weights: tuple[float, ...] = ()
    temperature: float = 1.0
    pit: tuple[float, ...] = ()

    def __call__(self, pdf: Floats) -> Floats:
        """Calibrated PDFs, (N, n) probability per bin, of the mean PDFs of the ensemble."""
        if self.temperature != 1:
            pdf = with_temperature(pdf, self.temperature)
        if not self.pit:
            return pdf
        cdf = np.concatenate([np.zeros((len(pdf), 1)), np.cumsum(pdf, axis=1)], axis=1)
        return np.diff(self.mapped(cdf / cdf[:, -1:]), axis=1)

    def mapped(self, cdf: Floats) -> Floats:
        """R of values of a CDF on [0, 1], of any shape; it increases from 0 to 1."""
        return np.asarray(np.interp(cdf, _GRID, self._map))

    def text(self) -> str:
        """The calibration in words, such as "temperature 1.21, map of the PIT of degree 3"."""
        words = [f"weights {', '.join(f'{one:.2f}' for one in self.weights)}"] if self.weights else []
        words += [f"temperature {self.temperature:.3g}"] if self.temperature != 1 else []
        words += [f"map of the PIT of degree {len(self.pit)}"] if self.pit else []
        return ", ".join(words) or "no change"

    @cached_property
    def _map(self) -> Floats:
        density = np.exp(polynomials(_GRID, len(self.pit)) @ np.array(self.pit))
        steps = (density[1:] + density[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(steps) / steps.sum()])


def calibrated(calibration: Calibration | None, pdf: Tensor) -> Tensor:
    """PDFs (N, n) of a network as they are scored: calibrated in float64, or as they are without one."""
    if calibration is None:
        return pdf
    return torch.from_numpy(calibration(pdf.double().cpu().numpy())).to(pdf)


def with_temperature(pdf: Floats, temperature: float) -> Floats:
    """p^(1/T), normalised, (N, n); T > 1 widens PDFs."""
    low = np.log(np.maximum(pdf, _TINY)) / temperature
    found = np.exp(low - low.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def polynomials(u: Floats, degree: int) -> Floats:
    """Legendre polynomials of degree 1 to `degree`, of unit variance on [0, 1]: (N, degree) of u (N,)."""
    norms = np.sqrt(2 * np.arange(1, degree + 1) + 1)
    return np.asarray(np.polynomial.legendre.legvander(2 * u - 1, degree)[:, 1:] * norms)
