"""What a network sees of a stamp: its central part, and of that the mean flux of squares of pixels.

Both make a pass cheaper, and neither changes what eps means for the ball linf. No change outside the central
part reaches the network. The mean of b x b pixels, each changed by at most eps, changes by at most eps, and
any change of the mean within eps can be made of such pixels; the same holds for the root mean square of a
change and for a conserved flux. Training therefore cuts and bins images when it loads them: the attack's own
work shrinks too, and it is the attack on whole stamps. Only where stamps are cut and the ball is l2 or flux
is an attack on whole stamps stronger, because it can move the share of the ball that lies outside inwards.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.nn import functional

from hpcphotoz.config import Model
from hpcphotoz.errors import BadInput


@dataclass(frozen=True)
class View:
    """What a network sees of square stamps.

    Attributes:
        part: pixels a side of the central part.
        binning: pixels a side of the squares that are averaged.
    """

    part: int
    binning: int

    @classmethod
    def of(cls, model: Model, stamp: int) -> Self:
        """The view of a network of this library.

        Args:
            model: `model.crop` and `model.binning`.
            stamp: pixels a side of the images.

        Raises:
            BadInput: the stamp has no such part in its middle, or the part is not a multiple of the binning.
        """
        part = model.crop or stamp
        if part > stamp or (stamp - part) % 2:
            raise BadInput(
                f"model.crop {part}: stamps of {stamp} x {stamp} pixels have no such central part: want an "
                f"{'odd' if stamp % 2 else 'even'} number of at most {stamp}, or 0 for whole stamps"
            )
        if part % model.binning:
            what = f"{'the central' if model.crop else 'stamps of'} {part} x {part} pixels"
            raise BadInput(
                f"model.binning {model.binning}: {what} cannot be divided into squares of "
                f"{model.binning} x {model.binning}: want a divisor of {part}"
            )
        return cls(part, model.binning)

    @property
    def side(self) -> int:
        """Pixels a side of what the network sees."""
        return self.part // self.binning

    def cut(self, images: Tensor) -> Tensor:
        """The central part of images (N, B, H, H) of any type, in their memory."""
        edge = (images.shape[-1] - self.part) // 2
        return images[..., edge : edge + self.part, edge : edge + self.part] if edge > 0 else images

    def __call__(self, images: Tensor) -> Tensor:
        """What a network sees.

        Args:
            images: (N, B, H, H) nMgy; of `side` pixels a side, which are seen images already, they are
                returned as they are.
        """
        if images.shape[-1] == self.side:
            return images
        part = self.cut(images)
        return part if self.binning == 1 else functional.avg_pool2d(part, self.binning)
