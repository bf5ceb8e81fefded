"""Images and labels of some objects of a dataset in memory, with their table and picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
from torch import Tensor

from hpcphotoz.api.arguments import whole_number
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.html_table import html_table
from hpcphotoz.output import number_of

MOSAIC = 32  # stamps of a picture
_LISTED = 5  # objects of a table


@dataclass(frozen=True, repr=False, eq=False)
class StampBatch:
    """Images and labels of N objects as tensors on one device, and extra columns as arrays of the host."""

    images: Tensor  # (N, bands, y, x) float32, nanomaggies
    ebv: Tensor  # (N,) float32, mag
    z_spec: Tensor  # (N,) float32, NaN: unknown
    sky_sigma: Tensor  # (N, bands) float32, nanomaggies per pixel
    object_id: Tensor  # (N,) int64
    bands: tuple[str, ...]  # of the images, in their order
    extra: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # (N,), (N, bands) or a value a pixel

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<StampBatch: {self._summary()}>"

    def _repr_html_(self) -> str:
        columns: dict[str, Any] = {"object_id": self.object_id, "z_spec": self.z_spec, "E(B-V)": self.ebv}
        columns |= {name: values for name, values in self.extra.items() if values.ndim == 1}
        values = zip(*(column[:_LISTED].tolist() for column in columns.values()), strict=True)
        rows = [[_shown(value) for value in row] for row in values]
        return html_table(self._summary(), list(columns), rows, len(self) - len(rows))

    def _summary(self) -> str:
        side = " x ".join(map(str, self.images.shape[2:]))
        bands = " ".join(self.bands)
        return (
            f"{number_of(len(self), 'object')}, bands {bands}, stamps of {side} pixels, {self.images.device}"
        )

    def plot(self, n: int = MOSAIC) -> Any:
        """Draw the first `n` stamps as colour images with pyplot, all with the same stretch.

        Returns:
            Array of Matplotlib's axes, (rows, columns); those without a stamp are empty.

        Raises:
            BadInput: no object, `n` is no whole number of at least 1, or matplotlib is not installed.
        """
        if (n := whole_number("n", n)) < 1:
            raise BadInput(f"n {n}: must be at least 1")
        from hpcphotoz.evaluation.report.pictures.notebook import plot_stamps

        columns = (self.images, self.sky_sigma, self.z_spec)
        images, sky_sigma, z_spec = (one[:n].detach().cpu().numpy() for one in columns)
        return plot_stamps(images, sky_sigma, z_spec, self.bands)


def _shown(value: Any) -> str:
    """A value of an object in a table: five digits of a number, text without the b of bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return f"{value:.5g}" if isinstance(value, float) else str(value)
