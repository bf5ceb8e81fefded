"""PDFs of one chunk of a RAIL table, as a qp ensemble."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import qp
import torch

from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.shards import check_finite, image_digests
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork
from hpcphotoz.predict import average_pdfs, point_estimates
from hpcphotoz.predict.columns import ANCIL
from hpcphotoz.sources.catalogue import EBV_UNKNOWN, nan_if_unknown_ebv

Array = npt.NDArray[Any]


class ChunkEstimator:
    """Computes the PDFs of chunks with one network.

    Args:
        network: the network, on the device where it is to compute.
        rows: number of objects of all chunks.
        id_col: name of the column of object ids, which error messages give.
        tta: average over the eight flips and right-angle rotations of each image.
    """

    def __init__(self, network: RedshiftNetwork, rows: int, id_col: str, tta: bool = False) -> None:
        self._network, self._id_col, self._tta = network, id_col, tta
        self._device = next(network.module.parameters()).device
        # On a CPU larger batches are slower: memory returns to the system after each.
        self._batch = 512 if self._device.type == "cuda" else 32
        self._forward = DatasetForward(network, self._batch, rows * (8 if tta else 1))

    def __call__(self, data: Mapping[str, Array], start: int) -> qp.Ensemble:
        """A `qp.hist` ensemble of the objects of a chunk.

        Its ancil has `zmode`, `zmean`, `zmedian`, and what the chunk has of the other columns of
        `predict.columns.ANCIL`.

        Args:
            data: `images` (N, B, y, x), nMgy, float32 or as a shard stores them; `ebv` (N,), mag; object ids.
            start: row of the first object in the table; names objects that have no number as id.

        Raises:
            BadInput: a column is missing or of another length, images of another shape than the network's,
                an E(B-V) that is unknown, a pixel or an output that is not finite, or pixels that differ from
                the shard's checksums.
        """
        images, ebv, object_id = self._inputs(data, start)
        parts = []
        for first in range(0, len(images), self._batch):
            rows = slice(first, first + self._batch)
            tensors = (torch.from_numpy(a[rows]).to(self._device) for a in (images, ebv, object_id))
            part = average_pdfs([self._network], *tensors, tta=self._tta, forwards=[self._forward])
            parts.append(part.double().cpu().numpy())
        bins, pdf = self._network.bins, np.concatenate(parts)
        # norm=False: each row is normalised, and qp would store float64.
        density = {"bins": bins.edges(), "pdfs": (pdf / bins.width).astype(np.float32), "norm": False}
        ancil = {
            name: np.asarray(data[name], dtype)
            for name, dtype in ANCIL.items()
            if name in data and np.asarray(data[name]).dtype.kind in "iuf"
        }
        return qp.Ensemble(qp.hist, data=density, ancil={**ancil, **point_estimates(pdf, bins)})

    def _inputs(self, data: Mapping[str, Array], start: int) -> tuple[Array, Array, Array]:
        """Images, E(B-V) and object ids of a chunk, as the network takes them."""
        for name in ("images", "ebv"):
            if name not in data:
                raise BadInput(f"the input has no column '{name}', only {', '.join(sorted(data))}")
        stored = np.ascontiguousarray(data["images"])
        shape = (len(self._network.bands), self._network.stamp, self._network.stamp)
        if stored.shape[1:] != shape:
            raise BadInput(
                f"images of shape {stored.shape[1:]} but run '{self._network.name}' takes {shape}: "
                f"bands {','.join(self._network.bands)} of {shape[1]} pixels"
            )
        object_id = np.asarray(data.get(self._id_col, ()))
        if object_id.dtype.kind not in "iu":  # none, or text: the row names the object
            object_id = np.arange(start, start + len(stored))
        ebv = np.asarray(data["ebv"])
        if ebv.shape != stored.shape[:1] or ebv.dtype.kind not in "iuf":
            raise BadInput(f"ebv of shape {ebv.shape} and {ebv.dtype} for {len(stored)} images: want numbers")
        ebv = nan_if_unknown_ebv(ebv.astype(np.float32))
        if (unknown := np.isnan(ebv)).any():
            row = int(unknown.argmax())
            given = f"object {object_id[row]}: {data['ebv'][row]:g} in ebv"
            raise BadInput(f"{given}: {EBV_UNKNOWN}: leave the object out, or look its E(B-V) up")
        if "image_xxh3" in data and (wrong := image_digests(stored) != data["image_xxh3"]).any():
            raise BadInput(f"object {object_id[wrong][0]}: pixels differ from the checksum stored with them")
        images = np.asarray(encoding.decode(stored, data.get("image_unit")), np.float32)
        check_finite(images, Path("the input"), start)
        return images, ebv, object_id.astype(np.int64)


@contextmanager
def quick_collections() -> Iterator[None]:
    """Context in which garbage collections leave out what exists already.

    RAIL collects after every chunk, which took 0.4 s over the objects of all imported modules.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
