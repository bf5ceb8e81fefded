"""The same real galaxies on two nights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.evaluation.natural.measure import measure_natural
from hpcphotoz.evaluation.natural.second_epoch import EPOCH, measure_second_epoch
from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.robustness import evaluate
from tests.helpers.networks import TWO_BINS, StubNetwork

pytest.importorskip("astropy", reason="astropy is not installed: FITS cannot be read")
from tests.helpers.sources.sdss_files import STRIPE82, ingest_frames, real_frames  # noqa: E402


class ApertureColour(nn.Module):
    """Redshift by the g - r colour of the central 12 x 12 pixels, in two bins."""

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        flux = images[:, :, 26:38, 26:38].sum((2, 3)).clamp(min=0.1)
        colour = torch.log10(flux[:, 2] / flux[:, 1]) + 0 * ebv
        return torch.stack([torch.zeros_like(colour), 4 * (colour - 0.25)], dim=1)


@pytest.mark.slow
@real_frames
def test_real_galaxies_of_two_nights_are_compared(tmp_path: Path) -> None:
    objects = STRIPE82 / "objects.csv"
    nights = [tmp_path / run for run in ("run-004192", "run-006377")]
    for night in nights:
        ingest_frames(night, STRIPE82 / night.name, objects)
    network = StubNetwork("colour", ApertureColour(), TWO_BINS, ("u", "g", "r", "i", "z"), 64)
    result = evaluate([network], nights[0], eps=(0.1,), methods=("pgd",), steps=3)
    headline = HeadlineAttack([network], result)
    shifts = measure_natural(headline)
    epoch = measure_second_epoch(headline, shifts, nights[1])
    one = epoch.networks["colour"]
    assert epoch.matched == 63  # of 65 and 67 stamps that are neither masked nor at an edge
    # Noise of two exposures alone is sqrt(2), times 0.83 to 0.9 by resampling; seeing adds bright pixels.
    assert 0.9 < np.median(one.rms[EPOCH]) < 3.0
    # A colour is measured anew by each night: it moves by more than rounding, and by less than at random.
    median = one.change(EPOCH)[0]
    assert 1e-4 < median < 0.5 * float(np.abs(np.subtract.outer(one.clean, one.clean)).mean())
    assert one.record(EPOCH)["attack_over_this"] is not None
