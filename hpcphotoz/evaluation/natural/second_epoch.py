"""The same galaxies on another night: predictions from two datasets, matched by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hpcphotoz.data.format.manifest import Manifest, read_manifest
from hpcphotoz.data.select.match import match_positions
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import divide_rows, read_batches, to_tensors
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.natural.columns import Columns, Floats
from hpcphotoz.evaluation.natural.measure import ATTACK, MovedRedshifts, NaturalShifts
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp, view_of
from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.models.view import View

EPOCH = "second_epoch"
ARCSEC = 1.0  # greatest separation of a galaxy's positions on both nights
_COMPARED = 256  # galaxies whose images of both nights are compared pixel by pixel


@dataclass(frozen=True)
class SecondEpoch:
    """Galaxies that two datasets share, and their <z> from both, by name of the network."""

    data: Path
    matched: int
    networks: dict[str, MovedRedshifts]  # of the matched galaxies; `moved` has `EPOCH` and the attack


def check_second_epoch(networks: Sequence[RedshiftNetwork], data: Path) -> None:
    """Raise BadInput for a dataset that the networks do not take."""
    manifest = read_manifest(data)
    for network in networks:
        check_bands_and_stamp(network, manifest.header, data)


def measure_second_epoch(headline: HeadlineAttack, shifts: NaturalShifts, data: Path) -> SecondEpoch:
    """Predict from the images of another night, and match galaxies by position, within 1 arcsec.

    The stamps' change in sky sigmas is that of at most 256 galaxies. Both datasets have to be cut on the same
    pixel grid around one catalogue's positions, as `ingest` does; all differences between the nights count:
    noise, seeing, calibration, registration, and variable sources.

    Args:
        headline: the evaluation of the first night.
        shifts: of `measure_natural` on it.
        data: dataset of the other night.

    Raises:
        BadInput: other bands or stamps, no galaxy in both datasets, or an output that is not finite.
    """
    networks, result = headline.networks, headline.result
    batch, ranks = headline.batch, headline.ranks
    ranks.on_first_rank(lambda: check_second_epoch(networks, data))
    manifest = read_manifest(data)
    part = divide_rows(data, manifest, batch, ranks=ranks)
    columns = Columns(("ra", "dec", *(f"z {network.name}" for network in networks)))
    forwards = [DatasetForward(network, batch, part.objects) for network in networks]
    batches = read_batches(data, manifest, batch, "predicting another night", share=part)
    for stamps in ranks.until_stopped(batches):
        tensor = to_tensors(stamps, headline.device)
        columns.add("ra", stamps.ra)
        columns.add("dec", stamps.dec)
        for network, forward in zip(networks, forwards, strict=True):
            pdf = headline.scored_pdfs(network, tensor, tensor["images"], forward)
            columns.add(f"z {network.name}", network.bins.integral(pdf))
    night = columns.gather(ranks)
    pairs = ranks.on_first_rank(lambda: _match(shifts, night, result.data, data))
    views = [view_of(network) for network in networks]
    amplitudes = ranks.on_first_rank(lambda: _amplitudes(result, data, manifest, pairs, batch, views))
    first, second = pairs.T
    found = {}
    for network, (rms, greatest) in zip(networks, amplitudes, strict=True):
        own = shifts.networks[network.name]
        moved = {ATTACK: own.moved[ATTACK][first], EPOCH: night[f"z {network.name}"][second]}
        kinds = {EPOCH: rms}, {EPOCH: greatest}
        found[network.name] = MovedRedshifts(own.z_spec[first], own.clean[first], moved, *kinds)
    return SecondEpoch(data, len(pairs), found)


def _match(shifts: NaturalShifts, night: dict[str, Floats], one: Path, other: Path) -> npt.NDArray[np.int64]:
    pairs = match_positions((shifts.ra, shifts.dec), (night["ra"], night["dec"]), ARCSEC)
    if not len(pairs):
        raise BadInput(
            f"{other}: no galaxy within {ARCSEC:g} arcsec of one of {one}: give a dataset of the same "
            "objects, with their ra and dec"
        )
    return pairs


def _amplitudes(
    result: EvaluationResult,
    data: Path,
    manifest: Manifest,
    pairs: npt.NDArray[np.int64],
    batch: int,
    views: Sequence[View],
) -> list[tuple[Floats, Floats]]:
    """Root mean square and greatest change of the pixels of each view between the nights.

    They are in sky sigmas of the first night.
    """
    first, second = pairs[:_COMPARED].T
    images, sigmas = _images(result.data, read_manifest(result.data), first, batch, result.subset)
    others, _ = _images(data, manifest, second, batch)
    change = torch.from_numpy((others - images) / sigmas[:, :, None, None])
    parts = [view.cut(change).flatten(1).numpy() for view in views]
    return [(np.sqrt((part**2).mean(axis=1)), np.abs(part).max(axis=1)) for part in parts]


def _images(
    data: Path,
    manifest: Manifest,
    places: npt.NDArray[np.int64],
    batch: int,
    subset: Subset = ALL_OBJECTS,
) -> tuple[Floats, Floats]:
    """Images and sky sigmas of objects at some places of the subset, in stored order, as float64."""
    last, start = int(places.max()) + 1, 0
    images: dict[int, Floats] = {}
    sigmas: dict[int, Floats] = {}
    for stamps in read_batches(data, manifest, batch, "comparing nights", last, subset):
        here = places[(places >= start) & (places < start + len(stamps))]
        images |= {int(place): stamps.images[place - start].astype(np.float64) for place in here}
        sigmas |= {int(place): stamps.sky_sigma[place - start].astype(np.float64) for place in here}
        start += len(stamps)
    wanted = places.tolist()
    return np.stack([images[place] for place in wanted]), np.stack([sigmas[place] for place in wanted])
