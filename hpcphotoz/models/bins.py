"""Redshift bins: turn logits into a PDF and its mean."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.kernels import redshift_loss_reference as reference
from hpcphotoz.kernels.backend import kernels_on


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
        return reference.centres(self.n, self.z_min, self.width, device)

    def edges(self) -> npt.NDArray[np.float64]:
        """Bin edges, (n + 1,) float64."""
        return np.linspace(self.z_min, self.z_max, self.n + 1)

    def index(self, z: Tensor) -> Tensor:
        """Number of the bin that holds each redshift, int64; z outside [z_min, z_max) get the nearest bin."""
        return reference.bin_index(z, self.n, self.z_min, self.width)

    def mean(self, logits: Tensor) -> Tensor:
        """<z>: mean of the PDF that logits (N, n) describe, (N,) float32."""
        return self.loss("mean", logits, None)

    def loss(self, kind: str, logits: Tensor, z: Tensor | None, label_width: float = 0.0) -> Tensor:
        """A loss of `kernels.redshift_loss_reference`, (N,) float32: one kernel on a GPU.

        Raises:
            ValueError: another number of logits than of bins.
        """
        kernels = kernels_on(logits.device.type)
        return kernels.redshift_loss(self._checked(logits), z, kind, self.z_min, self.width, label_width)

    def loss_and_gradient(self, kind: str, logits: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """`loss`, and its gradient (N, n) with respect to the logits, of their type."""
        kernels = kernels_on(logits.device.type)
        given = self._checked(logits)
        loss, grad = kernels.redshift_loss_and_gradient(given, z, None, kind, self.z_min, self.width)
        return loss, grad.to(logits.dtype)

    def _checked(self, logits: Tensor) -> Tensor:
        """The logits, contiguous; raises ValueError if they are not one a bin."""
        if logits.shape[1] != self.n:
            raise ValueError(f"{logits.shape[1]} logits for {self.n} bins: take the bins of the network")
        return (logits.float() if logits.dtype == torch.float64 else logits).contiguous()

    def integral(self, pdf: Tensor) -> Tensor:
        """Sum of z times probability over the bins, (N,) float32: <z> of a PDF.

        Args:
            pdf: (N, n) probability per bin, or a change of it.
        """
        return reference.integral(pdf, self.z_min, self.width)
