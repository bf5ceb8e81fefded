"""Redshift bins: turn logits into a PDF and its mean."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class RedshiftBins:
    """`n` uniform bins on [z_min, z_max); a PDF is a probability per bin."""

    n: int = 180
    z_min: float = 0.0
    z_max: float = 0.4

    def text(self) -> str:
        """The bins in words, such as "180 bins on [0, 0.4)"."""
        return f"{self.n} bins on [{self.z_min:g}, {self.z_max:g})"

    @property
    def width(self) -> float:
        """Width of a bin in redshift."""
        return (self.z_max - self.z_min) / self.n

    def centres(self, device: torch.device | str = "cpu") -> Tensor:
        """Bin centres, (n,) float32.

        Left edges would bias every mean by half a bin: 0.0011 for 180 bins on [0, 0.4).
        """
        # Created on the device: a copy from the host would synchronise in every step of an attack.
        numbers = torch.arange(self.n, dtype=torch.float64, device=device)
        return (self.z_min + (numbers + 0.5) * self.width).float()

    def edges(self) -> npt.NDArray[np.float64]:
        """Bin edges, (n + 1,) float64."""
        return np.linspace(self.z_min, self.z_max, self.n + 1)

    def index(self, z: Tensor) -> Tensor:
        """Number of the bin that holds each redshift, int64; z outside [z_min, z_max) get the nearest bin."""
        return ((z.double() - self.z_min) / self.width).floor().long().clamp(0, self.n - 1)

    def mean(self, logits: Tensor) -> Tensor:
        """<z>: mean of the PDF that logits (N, n) describe, (N,) float32."""
        return self.integral(torch.softmax(logits.float(), dim=1))

    def integral(self, pdf: Tensor) -> Tensor:
        """Sum of z times probability over the bins, (N,) float32: <z> of a PDF.

        Args:
            pdf: (N, n) probability per bin, or a change of it.
        """
        # No matrix product: under autocast its result is bfloat16, in steps of 0.001 to 0.002 for z of 0.13
        # to 0.4.
        return (pdf.float() * self.centres(pdf.device)).sum(dim=1)
