"""Randomised smoothing: redshifts of noisy copies of each image, and an attack on their average.

The smoothed redshift of an image is the median of <z> over copies with Gaussian noise of `sigma` sky sigmas
in every pixel. Noise is keyed by seed, object and number of the draw: neither ranks nor batches change it.
It is drawn for what a network sees of a stamp (`models.view`): noise elsewhere does not change the output.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcphotoz.attacks.sky_noise import sky_noise
from hpcphotoz.data.order import derive_key
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork, compute_pdfs
from hpcphotoz.models.view import View

NORMAL = NormalDist()
_PURPOSE = 16  # of these random numbers, different from that of all others
_ATTACK_DRAWS = 8  # over which an attack averages the PDF
_FIRST_ATTACKED = 1 << 30  # number of the first draw that an attack uses, beyond all draws of a certificate
_FIRST_JUDGED = 1 << 31  # of the first draw that judges an attacked image
_MOST_JUDGED = 200  # draws that judge an attacked image


@dataclass(frozen=True)
class Smoothing:
    """How redshifts are smoothed.

    Attributes:
        sigma: noise in sky sigmas of each band.
        samples: noisy copies of each image.
        confidence: with which each certificate holds.
        seed: of the noise.

    Raises:
        BadInput: an option out of range.
    """

    sigma: float
    samples: int = 1000
    confidence: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < 1e6:
            raise BadInput(f"sigma {self.sigma:g} of the smoothing: must be above 0 sky sigmas")
        if not 0.5 <= self.confidence < 1:
            raise BadInput(f"confidence {self.confidence:g}: must be at least 0.5 and below 1")
        if not 10 <= self.samples < _FIRST_ATTACKED:
            raise BadInput(f"samples {self.samples}: must be at least 10")
        if self.largest_radius <= 0:
            raise BadInput(
                f"{self.samples} samples certify nothing with confidence {self.confidence:g}: give more"
            )

    @property
    def alpha(self) -> float:
        """Probability that a certificate is wrong."""
        return 1 - self.confidence

    @property
    def largest_radius(self) -> float:
        """The largest radius that so many samples can certify: all of them are no outliers."""
        return self.sigma * NORMAL.inv_cdf((self.alpha / 2) ** (1 / self.samples))

    @property
    def key(self) -> int:
        """Seed of the noise, 64 bits."""
        return derive_key(self.seed, _PURPOSE)

    @property
    def judged(self) -> int:
        """Number of draws that judge an attacked image."""
        return min(self.samples, _MOST_JUDGED)


def seen_by(view: View, tensor: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch as a network sees it, with images of (N, B, side, side) and their sky sigmas.

    Independent noise of one sky sigma in each of b x b pixels is noise of 1 / b sky sigma in their mean. The
    mean's change, in units of that, is at most the L2 norm of the pixels' change in sky sigmas, and can be
    as large. Radii of seen images are therefore those of stamps.

    Args:
        view: of the network.
        tensor: of `batches.to_tensors`.
    """
    images, sky_sigma = view(tensor["images"]).contiguous(), tensor["sky_sigma"] / view.binning
    return {**tensor, "images": images, "sky_sigma": sky_sigma}


def draw_redshifts(
    network: RedshiftNetwork,
    forward: DatasetForward,
    tensor: dict[str, Tensor],
    images: Tensor,
    smoothing: Smoothing,
    draws: range,
    rows: int,
) -> npt.NDArray[np.float32]:
    """<z> of noisy copies of some images, (draws, N).

    Args:
        network: the network.
        forward: its forward pass.
        tensor: of `batches.to_tensors` or `seen_by`, N objects.
        images: (N, B, H, W) nMgy, theirs or attacked ones.
        smoothing: sigma and seed.
        draws: numbers of the draws.
        rows: greatest number of images in a forward pass; bounds the memory.
    """
    n = len(images)
    together = max(1, rows // n)
    found = np.empty((len(draws), n), np.float32)
    ebv, object_id, sky = (tensor[name] for name in ("ebv", "object_id", "sky_sigma"))
    for first in range(0, len(draws), together):
        some = draws[first : first + together]
        noise = [smoothing.sigma * sky_noise(images, sky, object_id, smoothing.key, draw) for draw in some]
        noisy = torch.cat([images + one for one in noise])
        labels = ebv.repeat(len(some)), object_id.repeat(len(some))
        z = network.bins.integral(compute_pdfs(network, noisy, *labels, forward))
        found[first : first + len(some)] = z.reshape(len(some), n).cpu().numpy()
    return found


class SmoothedNetwork(nn.Module):
    """The logarithm of a network's PDF averaged over noisy copies, as a function that attacks can take.

    An attack on it is one on the smoothed redshift (Salman et al. 2019, arXiv:1906.04584). It is called with
    the row numbers of the objects in a batch, where other networks take E(B-V): attacks feed objects in
    chunks, and noise is of an object. Memory holds eight noise images of each object of the batch.

    Args:
        network: the network.
        tensor: of `batches.to_tensors` or `seen_by`, the batch that is attacked.
        smoothing: sigma and seed.
    """

    def __init__(self, network: RedshiftNetwork, tensor: dict[str, Tensor], smoothing: Smoothing) -> None:
        super().__init__()
        self.module, self._ebv = network.module, tensor["ebv"]
        labels = tensor["sky_sigma"], tensor["object_id"], smoothing.key
        draws = range(_FIRST_ATTACKED, _FIRST_ATTACKED + _ATTACK_DRAWS)
        self._noise = [smoothing.sigma * sky_noise(tensor["images"], *labels, draw) for draw in draws]

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        """Logits, (N, bins), of images (N, B, H, W) in nMgy; `rows` (N,) are whole numbers in float32."""
        which = rows.long()
        ebv = self._ebv[which]
        pdfs = [
            torch.softmax(self.module(images + noise[which], ebv).float(), dim=1) for noise in self._noise
        ]
        return torch.log(torch.stack(pdfs).mean(dim=0) + torch.finfo(torch.float32).tiny)


def judging_draws(smoothing: Smoothing) -> range:
    """The draws that judge attacked images: neither the certificate nor the attack has seen them."""
    return range(_FIRST_JUDGED, _FIRST_JUDGED + smoothing.judged)
