"""Redshift PDFs of many objects, with their point estimates, quantiles and plots."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.html_table import html_table
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.output import number_of

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
_LISTED = 5  # objects of a table


@dataclass(frozen=True, repr=False, eq=False)
class RedshiftPdf:
    """Redshift PDFs of N objects; the density is constant inside a bin, so that the CDF is linear there.

    `pdf` holds the probability of each bin, whose sum is 1. The density, which `plot` draws and qp stores, is
    `pdf / bins.width`.

    `len(pdf)` is N; `pdf[i]`, `pdf[i:j]` and `pdf[mask]` are the PDFs of some of the objects.

    Attributes:
        pdf: (N, n) float32 or float64, probability per bin; each row sums to 1.
        bins: the n redshift bins.

    Raises:
        BadInput: `pdf` of another shape, or a row that is no PDF.
    """

    pdf: Array
    bins: RedshiftBins

    def __post_init__(self) -> None:
        if self.pdf.ndim != 2 or self.pdf.shape[1] != self.bins.n:
            raise BadInput(f"pdf of shape {self.pdf.shape}: want (N, {self.bins.n}), a column a bin")
        # 1e-3, as in `metrics`: a float16 softmax sums to 1 within that.
        wrong = ~((self.pdf >= 0).all(axis=1) & (abs(self.pdf.sum(axis=1) - 1) < 1e-3))
        if wrong.any():
            raise BadInput(f"pdf: row {int(wrong.argmax())}: want probabilities per bin that sum to 1")

    def __len__(self) -> int:
        return len(self.pdf)

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError("a RedshiftPdf is no array: take its `pdf`, (N, bins), the probability per bin")

    def __getitem__(self, rows: int | slice | Array) -> "RedshiftPdf":
        chosen = self.pdf[rows]
        return RedshiftPdf(chosen[None] if chosen.ndim == 1 else chosen, self.bins)

    @cached_property
    def mode(self) -> Floats:
        """Centre of the most probable bin, (N,)."""
        return np.asarray(self._centres[self.pdf.argmax(axis=1)])

    @cached_property
    def mean(self) -> Floats:
        """Mean redshift <z>, (N,)."""
        return np.asarray(self._double @ self._centres)

    @cached_property
    def median(self) -> Floats:
        """Where the CDF is 1/2, (N,)."""
        return self._inverse_cdf(np.full(len(self), 0.5))

    def quantiles(self, q: npt.ArrayLike) -> Floats:
        """The smallest redshifts at which the CDF reaches `q`.

        Args:
            q: a probability, or (M,) of them.

        Returns:
            (N,), or (N, M).

        Raises:
            BadInput: a `q` outside [0, 1].
        """
        asked = _at_most_one_axis("q", q)
        if (wrong := ~((asked >= 0) & (asked <= 1))).any():
            raise BadInput(f"q {asked[wrong][0]:g}: must be between 0 and 1")
        found = [self._inverse_cdf(np.full(len(self), one)) for one in asked.ravel()]
        if not asked.ndim:
            return found[0]
        return np.stack(found, axis=1) if found else np.empty((len(self), 0))

    def cdf(self, z: npt.ArrayLike) -> Floats:
        """Probability of a redshift below `z`: 0 below the first bin and 1 above the last.

        Args:
            z: a redshift, or (M,) of them.

        Returns:
            (N,), or (N, M).

        Raises:
            BadInput: a `z` that is NaN.
        """
        asked = _at_most_one_axis("z", z)
        if np.isnan(asked).any():
            raise BadInput("z nan: must not be NaN")
        place = np.clip((asked - self.bins.z_min) / self.bins.width, 0, self.bins.n)
        k = np.minimum(place.astype(np.int64), self.bins.n - 1)
        below = np.concatenate([np.zeros((len(self), 1)), self._cumulative], axis=1)
        found = below[:, k] + (place - k) * self._double[:, k]
        return np.asarray(np.minimum(found / below[:, -1].reshape(-1, *[1] * asked.ndim), 1))

    def plot(self, z_spec: Array | Tensor | None = None, *, label: str = "", ax: Any = None) -> Any:
        """Draw the densities: up to six as curves, more as their mean with the histogram of z_spec.

        Args:
            z_spec: (N,) redshifts to compare with; NaN: unknown.
            label: first word of the legend's entries, such as "attacked".
            ax: Matplotlib's axes to draw on, with other PDFs perhaps; None: new ones.

        Returns:
            The axes.

        Raises:
            BadInput: no object, `z_spec` of another length, or matplotlib is not installed.
        """
        from hpcphotoz.evaluation.report.pictures.notebook import plot_pdfs

        if isinstance(z_spec, Tensor):
            z_spec = z_spec.detach().cpu().numpy()
        z = None if z_spec is None else np.asarray(z_spec, np.float64)
        return plot_pdfs(self.pdf, self.bins.edges(), z, label, ax)

    def __repr__(self) -> str:
        return f"<RedshiftPdf: {self._summary()}>"

    def _repr_html_(self) -> str:
        first = self[:_LISTED]
        columns = [first.mode, first.mean, *first.quantiles(np.array([0.16, 0.5, 0.84])).T]
        values = zip(*columns, strict=True)
        rows = [[str(number), *(f"{z:.4f}" for z in row)] for number, row in enumerate(values)]
        heads = ["object", "mode", "mean", "16 %", "median", "84 %"]
        return html_table(self._summary(), heads, rows, len(self) - len(first))

    def _summary(self) -> str:
        return f"{number_of(len(self), 'object')}, probability per bin, {self.bins.text()}"

    @cached_property
    def _double(self) -> Floats:
        return self.pdf.astype(np.float64)

    @cached_property
    def _centres(self) -> Floats:
        edges = self.bins.edges()
        return (edges[1:] + edges[:-1]) / 2

    @cached_property
    def _cumulative(self) -> Floats:
        return np.cumsum(self._double, axis=1)

    def _inverse_cdf(self, probability: Floats) -> Floats:
        """Redshift at which the CDF of each object reaches a probability of its own, (N,)."""
        cdf, rows = self._cumulative, np.arange(len(self))
        target = probability * cdf[:, -1]
        k = (cdf < target[:, None]).sum(axis=1)  # the bin in which the CDF passes it
        inside, here = target - (cdf[rows, k] - self._double[rows, k]), self._double[rows, k]
        # A bin of probability 0 is met only at the lower end, with a target of 0.
        place = np.divide(inside, here, out=np.zeros_like(inside), where=here > 0)
        return np.asarray(self.bins.edges()[k] + np.clip(place, 0, 1) * self.bins.width)


def _at_most_one_axis(name: str, values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, np.float64)
    if array.ndim > 1:
        raise BadInput(f"{name} of shape {array.shape}: want a number or (M,)")
    return array
