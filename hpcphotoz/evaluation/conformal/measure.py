"""Measures how often PDF intervals and conformal intervals hold the redshift, clean and under attack."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.baseline.knn import object_keys
from hpcphotoz.evaluation.batches import check_redshifts, divide_rows, read_batches, to_tensors
from hpcphotoz.evaluation.conformal.intervals import Calibration, calibrate, central_interval
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp
from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.ranks import Ranks

Floats = npt.NDArray[np.float64]
CONDITIONS = ("clean", "attacked")
KINDS = ("pdf", "conformal")


@dataclass(frozen=True)
class Coverage:
    """Coverage and mean width of one network's intervals at each level of `intervals.LEVELS`."""

    network: str
    calibration: Calibration
    n: int  # objects of known z_spec that were measured
    covered: dict[tuple[str, str], Floats]  # (kind, condition) -> (levels,) fraction of the objects
    width: dict[tuple[str, str], Floats]  # (kind, condition) -> (levels,) mean, in redshift

    def error(self, kind: str, condition: str) -> Floats:
        """Binomial standard error of the coverage, (levels,)."""
        p = self.covered[kind, condition]
        return np.asarray(np.sqrt(p * (1 - p) / self.n))


@dataclass
class _Accumulator:
    """Counts of the objects that are in their intervals, and sums of widths, batch by batch."""

    network: RedshiftNetwork
    calibration: Calibration
    n: int = 0
    sums: list[Floats] = field(default_factory=list)  # of each batch: (kinds, conditions, 2, levels)

    def add(self, z_spec: npt.NDArray[np.float32], pdfs: tuple[Tensor, Tensor]) -> None:
        """Add a batch: its clean and its attacked PDFs."""
        known = np.isfinite(z_spec)
        if not known.any():
            return
        bins, z = self.network.bins, z_spec[known].astype(np.float64)
        found = np.zeros((len(KINDS), len(CONDITIONS), 2, len(self.calibration.widening)))
        for j, pdf in enumerate(pdfs):
            central = central_interval(RedshiftPdf(pdf.cpu().numpy()[known], bins))
            for i, (low, high) in enumerate(
                (central, self.calibration.interval(central, bins.z_min, bins.z_max))
            ):
                found[i, j] = ((low <= z) & (z <= high)).sum(axis=1), (high - low).sum(axis=1)
        self.sums.append(found)
        self.n += len(z)

    def result(self, ranks: Ranks) -> Coverage:
        n = sum(ranks.allgather(self.n))
        mean = np.sum([one for part in ranks.allgather(self.sums) for one in part], axis=0) / n
        places = [(i, j) for i in range(len(KINDS)) for j in range(len(CONDITIONS))]
        names = {(KINDS[i], CONDITIONS[j]): mean[i, j] for i, j in places}
        covered, width = ({key: value[k] for key, value in names.items()} for k in range(2))
        return Coverage(self.network.name, self.calibration, n, covered, width)


def check_conformal(
    networks: Sequence[RedshiftNetwork],
    data: Path,
    subset: Subset,
    limit: int | None,
    calibration_data: Path,
    calibration_subset: Subset,
) -> None:
    """Check the objects that `measure_conformal` calibrates and measures, from labels alone.

    Args:
        networks: of the evaluation.
        data, subset, limit: its objects.
        calibration_data, calibration_subset: those of the calibration.

    Raises:
        BadInput: as `measure_conformal`.
    """
    manifest = read_manifest(calibration_data)
    for network in networks:
        check_bands_and_stamp(network, manifest.header, calibration_data)
        who = f"run '{network.name}'"
        check_redshifts(network.bins, calibration_data, manifest, who, calibration_subset)
    calibrated = set(object_keys(calibration_data, calibration_subset, None))
    if not calibrated:
        raise BadInput(f"{calibration_data}: no calibration object of known z_spec: give another dataset")
    measured = object_keys(data, subset, limit)
    if not measured:
        raise BadInput(f"{data}: no object of known z_spec: the coverage of intervals needs it")
    if common := sum(key in calibrated for key in measured):
        raise BadInput(
            f"{calibration_data}: {common} calibration objects of --conformal are measured too: measure "
            "others, with --part test, or calibrate on another dataset"
        )


def measure_conformal(
    headline: HeadlineAttack, calibration_data: Path, subset: Subset
) -> tuple[Coverage, ...]:
    """Calibrate the intervals of each network of an evaluation, and measure them on its objects.

    Intervals are calibrated on clean images. The images are streamed; memory holds the intervals of the
    calibration objects.

    Args:
        headline: the networks, objects and attack of the evaluation.
        calibration_data: dataset of the calibration objects.
        subset: which of its objects.

    Returns:
        The same on every rank.

    Raises:
        BadInput: no calibration object of known z_spec, one that is measured too, other bands or stamps than
            the networks', a redshift outside the bins, or an unreadable shard.
    """
    result, ranks = headline.result, headline.ranks
    measured = result.data, result.subset, result.limit
    ranks.on_first_rank(lambda: check_conformal(headline.networks, *measured, calibration_data, subset))
    found = [
        _Accumulator(network, one)
        for network, one in zip(
            headline.networks, _calibrations(headline, calibration_data, subset), strict=True
        )
    ]
    for stamps, attacked in headline.batches("measuring intervals"):
        for one in found:
            batch = attacked[one.network.name]
            one.add(stamps.z_spec, (batch.pdf_clean, batch.pdf_attacked))
    return tuple(one.result(ranks) for one in found)


@torch.no_grad()
def _calibrations(headline: HeadlineAttack, data: Path, subset: Subset) -> list[Calibration]:
    manifest, ranks, batch = read_manifest(data), headline.ranks, headline.batch
    part = divide_rows(data, manifest, batch, subset, None, ranks)
    forwards = [DatasetForward(network, batch, part.objects) for network in headline.networks]
    z_spec: list[npt.NDArray[np.float32]] = []
    central: list[list[Floats]] = [[] for _ in forwards]
    batches = read_batches(data, manifest, batch, "calibrating intervals", None, subset, share=part)
    for stamps in ranks.until_stopped(batches):
        tensor, known = to_tensors(stamps, headline.device), np.isfinite(stamps.z_spec)
        z_spec.append(stamps.z_spec[known])
        for network, forward, parts in zip(headline.networks, forwards, central, strict=True):
            pdf = headline.scored_pdfs(network, tensor, tensor["images"], forward).cpu().numpy()[known]
            parts.append(central_interval(RedshiftPdf(pdf, network.bins)))
    z = np.concatenate([one for part in ranks.allgather(z_spec) for one in part])
    gathered = [[one for part in ranks.allgather(parts) for one in part] for parts in central]
    return [calibrate(np.concatenate(parts, axis=2), z) for parts in gathered]
