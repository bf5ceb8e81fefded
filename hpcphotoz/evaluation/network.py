"""The interface of a trained network to evaluation and prediction, and its PDFs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcphotoz.compute.precision import tf32
from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.census import count_objects
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.progress import track


class TrainedNetwork(Protocol):
    """A trained network: what `training.run.network.load_network` returns, or any with these properties."""

    @property
    def name(self) -> str:
        """The run folder's name."""

    @property
    def module(self) -> nn.Module:
        """Called as module(images, ebv); returns logits (N, bins)."""

    @property
    def bins(self) -> RedshiftBins:
        """Redshift bins of the logits."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands in the order in which the network takes them."""

    @property
    def stamp(self) -> int:
        """Pixels a side of the images it takes."""

    @property
    def step(self) -> int:
        """Optimiser steps taken."""


def check_bands_and_stamp(network: TrainedNetwork, header: Header, where: object) -> None:
    """Refuse a dataset in other bands or of another stamp size than the network was trained on."""
    if network.bands != header.bands:
        ours, theirs = ",".join(network.bands), ",".join(header.bands)
        raise BadInput(f"{where}: holds bands {theirs} but run '{network.name}' takes {ours}, in that order")
    if network.stamp != header.stamp:
        raise BadInput(
            f"{where}: stamps of {header.stamp} pixels but run '{network.name}' takes {network.stamp}: "
            "cut the stamps again at that size"
        )


def edges(bins: RedshiftBins) -> npt.NDArray[np.float64]:
    """Bin edges, (n + 1,) float64."""
    return np.linspace(bins.z_min, bins.z_max, bins.n + 1)


@torch.no_grad()
def compute_pdfs(
    network: TrainedNetwork,
    images: Tensor,
    ebv: Tensor,
    object_id: Tensor,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The PDF of each object, (N, bins) float32 probabilities, in evaluation mode, in float32 without TF32.

    Args:
        network: the trained network.
        images: (N, B, H, W) float32, nMgy.
        ebv: (N,) float32, mag.
        object_id: (N,) int64, for the message below.
        forward: returns logits from images and ebv, as `inference.DatasetForward`; None: `network.module`.

    Raises:
        BadInput: logits of the wrong shape, or not finite for some object.
    """
    network.module.eval()
    with tf32(False):
        logits = (forward or network.module)(images, ebv).float()
    if logits.shape != (len(images), network.bins.n):
        raise BadInput(
            f"run '{network.name}': logits of shape {tuple(logits.shape)} for {len(images)} objects and "
            f"{network.bins.n} bins: the network and its configuration do not belong together"
        )
    bad = ~torch.isfinite(logits).all(dim=1)
    if bad.any():
        raise BadInput(
            f"run '{network.name}': the output for object {int(object_id[bad][0])} is not finite: "
            "has the training diverged? use an earlier checkpoint"
        )
    return torch.softmax(logits, dim=1)


def to_tensors(stamps: Stamps, device: torch.device | str) -> dict[str, Tensor]:
    """Copy images, E(B-V), z_spec, sky sigma and object id of some objects to a device."""
    names = ("images", "ebv", "z_spec", "sky_sigma", "object_id")
    return {name: torch.from_numpy(np.ascontiguousarray(getattr(stamps, name))).to(device) for name in names}


def read_batches(
    data: Path,
    manifest: Manifest,
    batch: int,
    what: str,
    limit: int | None = None,
    subset: Subset = ALL_OBJECTS,
) -> Iterator[Stamps]:
    """Read the first `limit` objects of a subset (all by default) in stored order, with a progress bar.

    Objects are counted at the call, not at the first batch: an empty subset is refused before any output.

    Args:
        data, manifest: the dataset's folder and its manifest.
        batch: objects at most at a time; the last batch of a shard may hold fewer.
        what: the verb of the progress line, as in "predicting".
        limit: number of objects to give.
        subset: which objects are meant.

    Raises:
        BadInput: no object is meant; on the way, what reading a dataset raises.
    """
    left = min(count_subset_objects(data, manifest, subset), limit or manifest.rows)
    parts = _first(read_rows(data, manifest, batch, subset if subset.columns else None), left)
    return track(parts, f"{what} (objects)", total=left, weight=len)


def count_subset_objects(data: Path, manifest: Manifest, subset: Subset) -> int:
    """Number of objects in a subset of a dataset.

    Raises:
        BadInput: none, or a shard whose labels cannot be read.
    """
    if manifest.rows == 0:
        raise BadInput(f"{data}: holds no object")
    if {"validation": subset.validation, "test": subset.test}.get(subset.part) == 0:
        raise BadInput(
            f"{data}: the split of the training has no {subset.part} part (data.{subset.part} is 0): "
            f"take another part, or a run trained with --data.{subset.part} 0.1"
        )
    rows = count_objects(manifest, ShardFiles(data, manifest), [subset])[0].census.rows
    if rows == 0:
        raise BadInput(
            f"{data}: none of its {manifest.rows} objects is meant{subset_text(subset)}: "
            "change the part or the predicate"
        )
    return rows


def subset_record(subset: Subset) -> dict[str, Any]:
    """The subset as JSON for provenance: `part`, `where` ("": all) and, unless all parts, the `split`."""
    record: dict[str, Any] = {"part": subset.part, "where": subset.where.text if subset.where else ""}
    if subset.part != "all":
        record["split"] = {"validation": subset.validation, "test": subset.test, "seed": subset.seed}
    return record


def subset_text(subset: Subset, limit: int | None = None) -> str:
    """The subset as text in parentheses after a space, for messages; empty if it is the whole dataset."""
    words = []
    if subset.part != "all":
        fractions = f"{subset.validation:g} validation, {subset.test:g} test"
        words.append(f"{subset.part} part of a split into {fractions}, seed {subset.seed}")
    if subset.where:
        words.append(f"where {' '.join(subset.where.text.split())}")
    if limit:
        words.append(f"at most the first {limit}")
    return f" ({'; '.join(words)})" if words else ""


def _first(parts: Iterator[Stamps], left: int) -> Iterator[Stamps]:
    for stamps in parts:
        yield stamps[:left]
        left -= len(stamps)
        if left <= 0:
            return
