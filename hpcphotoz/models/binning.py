"""Binning of pixels: a network that sees the mean flux of squares of pixels costs a fraction of a whole one.

The mean of b x b pixels, each changed by at most eps, changes by at most eps, and any change of the mean
within eps can be made of such pixels. The same holds for the root mean square of a change and for a
conserved flux. A network that bins its images first is therefore attacked on binned images as strongly as on
whole ones, with the same eps. Training bins images when it loads them: the attack's own work shrinks too.
"""

from torch import Tensor
from torch.nn import functional

from hpcphotoz.errors import BadInput


def binned_side(stamp: int, binning: int) -> int:
    """Pixels a side of a binned stamp.

    Raises:
        BadInput: the stamp is not a multiple of the binning.
    """
    if stamp % binning:
        raise BadInput(
            f"model.binning {binning}: stamps of {stamp} x {stamp} pixels cannot be divided into squares of "
            f"{binning} x {binning}: want a divisor of {stamp}"
        )
    return stamp // binning


def bin_pixels(images: Tensor, side: int) -> Tensor:
    """Mean flux of squares of pixels.

    Args:
        images: (N, B, H, H) nMgy; of `side` pixels a side they are returned as they are.
        side: pixels a side of the result, a divisor of H.
    """
    return images if images.shape[-1] == side else functional.avg_pool2d(images, images.shape[-1] // side)
