"""The Inception network of Pasquet et al. 2019 (arXiv:1806.06607), as in Campagne's public code.

Parameter names are those of that code, so that its weights load.
"""

import torch
from torch import Tensor, nn

from hpcphotoz.kernels.network import reference
from hpcphotoz.models.layers import (
    Conv,
    FluxNetwork,
    Linear,
    Normalise,
    convolve_together,
    pool,
    with_ebv,
)


class InceptionModule(nn.Module):
    """One inception module.

    Its branches, concatenated in this order: 1x1; 1x1 -> 5x5; 1x1 -> 3x3; 1x1 -> 2x2 average.

    Args:
        inputs: channels in.
        a: channels of the reducing 1x1 convolutions.
        b: channels of the branches.
        large: whether there is a 5x5 branch.
        counts_padding: the stride-1 average counts the padded zeros (torch); TensorFlow's SAME does not.
    """

    def __init__(
        self, inputs: int, a: int, b: int, *, large: bool = True, counts_padding: bool = True
    ) -> None:
        super().__init__()
        self.s1_0, self.s2_0 = Conv(inputs, a, 1, 0), Conv(a, b, 3, 1)
        if large:
            self.s1_1, self.s2_1 = Conv(inputs, a, 1, 0), Conv(a, b, 5, 2)
        self.s1_2, self.s2_2 = Conv(inputs, a, 1, 0), Conv(inputs, b, 1, 0)
        self._large, self._counts_padding = large, counts_padding
        self._smoothing = "smooth" if counts_padding else "smooth_edge"
        self.merged = False  # see `merge_pointwise`
        self.outputs = (3 if large else 2) * b + a

    def forward(self, x: Tensor, halve: bool = False) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W), or with `halve` the same through `pool`."""
        if self.s2_2.fuses(x):
            return self._fused(x, halve)
        found = self._merged(x) if self.merged else self._plain(x)
        return pool(found) if halve else found

    def _plain(self, x: Tensor) -> Tensor:
        branches = [self.s2_2(x)]
        if self._large:
            branches.append(self.s2_1(self.s1_1(x)))
        branches += [self.s2_0(self.s1_0(x)), self._smooth(self.s1_2(x))]
        return torch.cat(branches, dim=1)

    def _fused(self, x: Tensor, halve: bool) -> Tensor:
        # Each branch is halved by the kernel that activates it: none is written at full size but the last.
        branches = [self.s2_2(x, halve)]
        if self._large:
            branches.append(self.s2_1(self.s1_1(x), halve))
        smoothed = self.s1_2.pooled(x, self._smoothing)
        branches += [self.s2_0(self.s1_0(x), halve), pool(smoothed) if halve else smoothed]
        return torch.cat(branches, dim=1)

    def _merged(self, x: Tensor) -> Tensor:
        large = self._large
        first = [self.s2_2, *([self.s1_1] if large else []), self.s1_0, self.s1_2]
        pointwise, *reduced, smoothed = convolve_together(first, x)
        second = [*([self.s2_1] if large else []), self.s2_0]
        branches = [layer(y) for layer, y in zip(second, reduced, strict=True)]
        return torch.cat([pointwise, *branches, self._smooth(smoothed)], dim=1)

    def _smooth(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._smooth_by_slices(x)
        return reference.pool(x, self._smoothing)

    def _smooth_by_slices(self, x: Tensor) -> Tensor:
        # The Inductor of torch 2.13 fails on the backward of the pool ("vr must not be None")
        # and of the replicating pad (it expects other strides).
        for dim in (2, 3):
            rest, edge = x.narrow(dim, 1, x.shape[dim] - 1), x.narrow(dim, x.shape[dim] - 1, 1)
            after = torch.cat([rest, torch.zeros_like(edge) if self._counts_padding else edge], dim)
            x = (x + after) / 2
        return x


class Inception(FluxNetwork):
    """Five inception modules and three dense layers: 27.6 million parameters at 64x64x5 with 180 bins."""

    def __init__(
        self,
        normalise: Normalise,
        bands: int,
        stamp: int,
        bins: int,
        *,
        relu_logits: bool,
        counts_padding: bool,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.conv0 = Conv(bands, 64, 5, 2)
        self.i0 = InceptionModule(64, 48, 64, counts_padding=counts_padding)
        self.i1 = InceptionModule(self.i0.outputs, 64, 92, counts_padding=counts_padding)
        self.i2 = InceptionModule(self.i1.outputs, 92, 128, counts_padding=counts_padding)
        self.i3 = InceptionModule(self.i2.outputs, 92, 128, counts_padding=counts_padding)
        self.i4 = InceptionModule(self.i3.outputs, 92, 128, large=False, counts_padding=counts_padding)
        side = -(-stamp // 8)  # three halvings, each rounded up
        self.fc0 = Linear(self.i4.outputs * side * side + 1, 1096)
        self.fc1 = Linear(1096, 1096)
        self.fc2 = Linear(1096, bins, relu=relu_logits)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits (N, bins) of images (N, B, H, W) in nMgy and E(B-V) (N,)."""
        return self._of_first(self.conv0(self.normalise(images), halve=True), ebv)

    def of_normalised(self, x: Tensor, ebv: Tensor) -> Tensor:
        """As `FluxNetwork`."""
        return self._of_first(self.conv0.of_padded(x, halve=True), ebv)

    def _of_first(self, x: Tensor, ebv: Tensor) -> Tensor:
        x = self.i1(self.i0(x), halve=True)
        x = self.i3(self.i2(x), halve=True)
        x = self.fc1(self.fc0(with_ebv(self.i4(x), ebv)))
        out: Tensor = self.fc2(x)
        return out


def merge_pointwise(network: nn.Module) -> None:
    """Let inception modules compute the 1x1 convolutions of their input as one convolution.

    On a CPU the Inception then trains 1.09 times as fast. Parameters stay as they are; results differ by the
    order of sums. Other networks have no such convolutions and stay as they are.
    """
    for module in network.modules():
        if isinstance(module, InceptionModule):
            module.merged = True
