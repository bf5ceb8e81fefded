"""What evaluation and prediction ask of a trained network, and its PDFs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcphotoz.attacks.precision import tf32
from hpcphotoz.data.census import count
from hpcphotoz.data.files import Files
from hpcphotoz.data.rows import read_rows
from hpcphotoz.data.shards import Header, Manifest, Stamps
from hpcphotoz.data.subset import EVERYTHING, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.progress import track


class Network(Protocol):
    """A trained network: what `training.checkpoint.load_network` returns, or anything that looks like it."""

    @property
    def name(self) -> str:
        """The run folder's name."""

    @property
    def module(self) -> nn.Module:
        """Called as module(images, ebv); returns logits (N, bins)."""

    @property
    def bins(self) -> RedshiftBins:
        """What the logits mean."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands in the order in which the network takes them."""

    @property
    def stamp(self) -> int:
        """Pixels a side of the images it takes."""

    @property
    def step(self) -> int:
        """Optimiser steps taken."""


def check_fits(network: Network, header: Header, where: object) -> None:
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
def pdfs(
    network: Network,
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
        forward: computes the logits from images and ebv, as `compute.DatasetForward`; None: the module does.

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


def tensors(stamps: Stamps, device: torch.device | str) -> dict[str, Tensor]:
    """Images, E(B-V), z_spec, sky sigma and object id of some objects, on a device."""
    names = ("images", "ebv", "z_spec", "sky_sigma", "object_id")
    return {name: torch.from_numpy(np.ascontiguousarray(getattr(stamps, name))).to(device) for name in names}


def batches(
    data: Path,
    manifest: Manifest,
    batch: int,
    what: str,
    limit: int | None = None,
    subset: Subset = EVERYTHING,
) -> Iterator[Stamps]:
    """The first `limit` objects of a subset (all by default) in stored order, with a progress bar.

    They are counted at the call, so that a subset of nothing is refused before anything is written.

    Args:
        data, manifest: the dataset's folder and its manifest.
        batch: objects at most at a time; the last batch of a shard may hold fewer.
        what: the verb of the progress line, as in "predicting".
        limit: number of objects to give.
        subset: which objects are meant.

    Raises:
        BadInput: no object is meant; on the way, what reading a dataset raises.
    """
    left = min(rows_of(data, manifest, subset), limit or manifest.rows)
    parts = _first(read_rows(data, manifest, batch, subset if subset.columns else None), left)
    return track(parts, f"{what} (objects)", total=left, weight=len)


def rows_of(data: Path, manifest: Manifest, subset: Subset) -> int:
    """Number of objects that are meant.

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
    rows = count(manifest, Files(data, manifest), [subset])[0].census.rows
    if rows == 0:
        raise BadInput(
            f"{data}: none of its {manifest.rows} objects is meant{in_words(subset)}: "
            "change the part or the predicate"
        )
    return rows


def describe(subset: Subset) -> dict[str, Any]:
    """Which objects are meant, for a record: `part`, `where` ("": all) and, of a part, the `split`."""
    record: dict[str, Any] = {"part": subset.part, "where": subset.where.text if subset.where else ""}
    if subset.part != "all":
        record["split"] = {"validation": subset.validation, "test": subset.test, "seed": subset.seed}
    return record


def in_words(subset: Subset, limit: int | None = None) -> str:
    """The same for a reader, in parentheses after a space; nothing where all objects are meant."""
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
