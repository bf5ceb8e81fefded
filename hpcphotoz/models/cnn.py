"""The small CNN of J.-E. Campagne's public code, and a compact one for laptops."""

from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz.models.layers import Conv, Convolution, FluxNetwork, Linear, Normalise, with_ebv

_EBV_GAIN = 10.0  # E(B-V) is a few hundredths of a magnitude: brought to the order of the other features


class SmallCNN(FluxNetwork):
    """The small CNN: 13.5 million parameters at 64x64x5 with 180 bins.

    Parameter names are those of Campagne's public code, so that its weights load.
    """

    def __init__(self, normalise: Normalise, bands: int, stamp: int, bins: int, *, relu_logits: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.conv0, self.conv1, self.conv2 = Conv(bands, 64, 5, 2), Conv(64, 92, 3, 2), Conv(92, 128, 3, 2)
        side = -(-stamp // 2)
        for _ in range(2):
            side = -(-(side + 2) // 2)  # padding 2 around a 3x3 kernel grows the image by 2
        self.fc0 = Linear(128 * side * side + 1, 1024)
        self.fc1 = Linear(1024, bins, relu=relu_logits)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits (N, bins) of images (N, B, H, W) in nMgy and E(B-V) (N,)."""
        return self._of_first(self.conv0(self.normalise(images), halve=True), ebv)

    def of_normalised(self, x: Tensor, ebv: Tensor) -> Tensor:
        """As `FluxNetwork`."""
        return self._of_first(self.conv0.of_padded(x, halve=True), ebv)

    def _of_first(self, x: Tensor, ebv: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x, halve=True), halve=True)
        out: Tensor = self.fc1(self.fc0(with_ebv(x, ebv)))
        return out


class CompactCNN(FluxNetwork):
    """1.4 million parameters at 64x64x5 with 180 bins: trains in minutes on two cores.

    Every stage halves the image by its stride: half the cost of convolving first and pooling after.
    There is no batch normalisation, hence no effect of how ranks share a batch.

    Args:
        width: channels of the first stage; the later ones have 2 and 4 times as many.
    """

    def __init__(self, normalise: Normalise, bands: int, stamp: int, bins: int, *, width: int) -> None:
        super().__init__()
        self.normalise = normalise
        self.stem = Convolution(bands, width, 5, stride=2, padding=2)
        self.conv1 = Convolution(width, 2 * width, 3, stride=2, padding=1)
        self.conv2 = Convolution(2 * width, 4 * width, 3, stride=2, padding=1)
        self.conv3 = Convolution(4 * width, 4 * width, 3, stride=2, padding=1)
        side = -(-stamp // 16)  # four halvings, each rounded up
        self.hidden = nn.Linear(4 * width * side * side + 1, 256)
        self.head = nn.Linear(256, bins)
        for layer in (self.stem, self.conv1, self.conv2, self.conv3, self.hidden):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits (N, bins) of images (N, B, H, W) in nMgy and E(B-V) (N,)."""
        return self._of_stem(self.stem(self.normalise(images)), ebv)

    def of_normalised(self, x: Tensor, ebv: Tensor) -> Tensor:
        """As `FluxNetwork`."""
        return self._of_stem(self.stem.of_padded(x), ebv)

    def _of_stem(self, x: Tensor, ebv: Tensor) -> Tensor:
        x = functional.silu(x)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = functional.silu(conv(x))
        out: Tensor = self.head(functional.silu(self.hidden(with_ebv(x, _EBV_GAIN * ebv))))
        return out
