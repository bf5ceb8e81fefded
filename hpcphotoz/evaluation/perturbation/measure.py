"""Measures where the perturbation of the headline attack is, and what photometry sees of it."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation.perturbation.colours import colour_change
from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.perturbation.power import PowerMaps
from hpcphotoz.ranks import Ranks

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Perturbation:
    """Mean power of one network's perturbations, in sky sigmas squared, and the changes of colours."""

    network: str
    by_band: Floats  # (B,)
    by_radius: Floats  # (rings,) of `PowerMaps`
    by_frequency: Floats  # (rings,)
    change: npt.NDArray[np.float32]  # (N, radius, B) mag, of `colours.ColourChange`
    error: npt.NDArray[np.float32]  # (N, radius, B) mag

    @property
    def significance(self) -> npt.NDArray[np.float32]:
        """Absolute change in units of the photometric error, (N, radius, B)."""
        return np.asarray(np.abs(self.change) / self.error, np.float32)

    def seen(self, sigmas: float) -> float:
        """Fraction of the galaxies of which some colour, in some aperture, changes by more than this.

        A single band has no colour: 0.
        """
        return float((self.significance[..., :-1].max(axis=(1, 2), initial=0) > sigmas).mean())


@dataclass
class _Accumulator:
    """Sums of each batch, kept apart so that their total does not depend on the number of ranks."""

    header: Header
    maps: PowerMaps
    sums: list[tuple[int, list[Floats]]] = field(default_factory=list)
    colours: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def add(self, stamps: Stamps, attacked: Tensor) -> None:
        after = attacked.cpu().numpy()
        delta = np.asarray((after - stamps.images) / stamps.sky_sigma[:, :, None, None], np.float32)
        powers = self.maps.by_band(delta), self.maps.by_radius(delta), self.maps.by_frequency(delta)
        self.sums.append((len(delta), [power.sum(axis=0) for power in powers]))
        self.colours.append(np.stack(colour_change(stamps, after, self.header)).astype(np.float32))

    def result(self, network: str, ranks: Ranks) -> Perturbation:
        sums = [one for part in ranks.allgather(self.sums) for one in part]
        parts = [one for part in ranks.allgather(self.colours) for one in part]
        total = sum(count for count, _ in sums)
        band, radius, frequency = (np.sum([power[k] for _, power in sums], axis=0) / total for k in range(3))
        change, error = np.concatenate(parts, axis=1)
        return Perturbation(network, band, radius, frequency, change, error)


def measure_perturbations(headline: HeadlineAttack) -> tuple[Perturbation, ...]:
    """Measure the perturbation of each network of an evaluation; the same on every rank.

    The images are streamed: memory holds the changes of colours, and one set of sums a batch.

    Raises:
        BadInput: a shard cannot be read, or an output is not finite.
    """
    header = headline.result.header
    maps = PowerMaps(header.stamp, header.pixel_scale)
    found = {network.name: _Accumulator(header, maps) for network in headline.networks}
    for stamps, attacked in headline.batches("measuring perturbations"):
        for name, one in attacked.items():
            found[name].add(stamps, one.attacked)
    return tuple(one.result(name, headline.ranks) for name, one in found.items())
