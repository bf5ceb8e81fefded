"""The Inception of Pasquet et al. 2019 with a part of its channels: sized to two cores."""

from torch import Tensor, nn

from hpcphotoz.config import Model
from hpcphotoz.models.inception import InceptionModule
from hpcphotoz.models.layers import Conv, Linear, Normalise, with_ebv
from hpcphotoz.models.view import View


class NarrowInception(nn.Module):
    """`hpcphotoz.models.inception.Inception` with all numbers of channels divided by one number.

    Args:
        normalise: the first layer, on flux.
        bands: number of bands.
        stamp: pixels a side of what `normalise` returns.
        bins: number of redshift bins.
        divisor: of every number of channels of the network.
    """

    def __init__(self, normalise: Normalise, bands: int, stamp: int, bins: int, divisor: int) -> None:
        super().__init__()
        widths = [(48, 64), (64, 92), (92, 128), (92, 128), (92, 128)]
        self.normalise, channels = normalise, 64 // divisor
        self.conv0 = Conv(bands, channels, 5, 2)
        modules = []
        for place, (a, b) in enumerate(widths):
            module = InceptionModule(channels, a // divisor, b // divisor, large=place < len(widths) - 1)
            modules.append(module)
            channels = module.outputs
        self.inception = nn.ModuleList(modules)
        side, dense = -(-stamp // 8), 1096 // divisor  # three halvings, each rounded up
        self.fc0 = Linear(channels * side * side + 1, dense)
        self.fc1, self.fc2 = Linear(dense, dense), Linear(dense, bins, relu=False)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits (N, bins) of images (N, B, H, W) in nMgy and E(B-V) (N,)."""
        x = self.conv0(self.normalise(images), halve=True)
        for place, module in enumerate(self.inception):
            x = module(x, halve=place in (1, 3))
        out: Tensor = self.fc2(self.fc1(self.fc0(with_ebv(x, ebv))))
        return out


def narrow_inception(
    bands: int,
    stamp: int,
    bins: int,
    scale: tuple[float, ...],
    *,
    divisor: int = 4,
    crop: int = 0,
    binning: int = 1,
) -> nn.Module:
    """A `NarrowInception` as `model.name` takes it.

    Args:
        bands, stamp, bins, scale: given by hpcphotoz; see docs/how-to/train-own-network.md.
        divisor: of the Inception's numbers of channels.
        crop, binning: as the options of section `model`.
    """
    view = View.of(Model(crop=crop, binning=binning), stamp)
    return NarrowInception(Normalise("asinh", scale, view), bands, view.side, bins, divisor)
