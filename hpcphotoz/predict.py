"""Redshift PDFs for a catalogue, in the file that qp and RAIL read.

Layout of the file (qp's `hist`): group `meta` with `pdf_name`, `pdf_version` and `bins` (1, n + 1); group
`data` with `pdfs` (N, n), probability densities; group `ancil` with arrays of length N. It is written by h5py
alone, slice by slice, so that memory does not grow with the catalogue.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.atomic import replacing
from hpcphotoz.data.shards import read_manifest
from hpcphotoz.data.subset import EVERYTHING, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.network import Network, batches, check_fits, edges, pdfs, rows_of, tensors
from hpcphotoz.kernels import reference
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float64]

ANCIL = {
    "object_id": np.int64,
    "zmode": np.float64,  # centre of the most probable bin
    "zmean": np.float64,
    "zmedian": np.float64,  # where the CDF is 1/2
    "ra": np.float64,  # deg
    "dec": np.float64,  # deg
    "ebv": np.float64,  # mag
    "z_spec": np.float64,  # NaN: unknown
}


def predict(
    networks: Sequence[Network],
    data: Path,
    out: Path,
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    tta: bool = False,
    subset: Subset = EVERYTHING,
) -> int:
    """Write the PDF of every object of a dataset; several networks are averaged.

    The file appears under its name only when it is complete.

    Args:
        networks: at least one; all with the same redshift bins and the dataset's bands.
        data: dataset folder; z_spec may be unknown.
        out: HDF5 file to write; replaced if it exists.
        batch: objects at a time.
        device: where the networks are.
        tta: average over the eight flips and right-angle rotations of each image; costs eight times as much.
        subset: which objects of the dataset.

    Returns:
        Number of objects.

    Raises:
        BadInput: no network, different bins, other bands or stamp size than the dataset, an output that is
            not finite, a dataset that cannot be read or holds no object, or `out` that cannot be written.
    """
    manifest = read_manifest(data)
    bins = _common_bins(networks)
    for network in networks:
        check_fits(network, manifest.header, data)
    if batch < 1:
        raise BadInput(f"batch {batch}: must be at least 1")
    if manifest.rows == 0:
        raise BadInput(f"{data}: holds no object")
    if out.is_dir():
        raise BadInput(f"{out}: is a folder: give the name of a file, such as {out / 'pz.hdf5'}")
    try:
        with replacing(out) as temporary, h5py.File(temporary, "w") as file:
            _create(file, rows_of(data, manifest, subset), bins)
            file.attrs["runs"] = [f"{network.name} step {network.step}" for network in networks]
            done = 0
            for stamps in batches(data, manifest, batch, "predicting", subset=subset):
                tensor = tensors(stamps, device)
                pdf = average(networks, tensor["images"], tensor["ebv"], tensor["object_id"], tta=tta)
                rows = slice(done, done + len(stamps))
                p = pdf.double().cpu().numpy()
                file["data/pdfs"][rows] = p / bins.width
                points = {**vars(stamps), **point_estimates(p, bins)}
                for name in ANCIL:
                    file["ancil"][name][rows] = points[name]
                done += len(stamps)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error}") from None
    return done


def average(
    networks: Sequence[Network], images: Tensor, ebv: Tensor, object_id: Tensor, *, tta: bool = False
) -> Tensor:
    """The mean PDF over networks, and over the symmetries of the square if `tta`; (N, bins) float32.

    Args:
        networks: with the same bins.
        images: (N, B, H, W) float32, nMgy.
        ebv: (N,) float32, mag.
        object_id: (N,) int64.
        tta: average over the eight flips and right-angle rotations.
    """
    total = torch.zeros(len(images), networks[0].bins.n, device=images.device)
    codes = range(8 if tta else 1)
    for code in codes:
        turned = reference.dihedral(images, torch.full_like(object_id, code)) if code else images
        for network in networks:
            total += pdfs(network, turned, ebv, object_id)
    return total / (len(codes) * len(networks))


def point_estimates(pdf: Floats, bins: RedshiftBins) -> dict[str, Floats]:
    """`zmode`, `zmean` and `zmedian` of PDFs.

    Args:
        pdf: (N, n) probability per bin, rows that sum to 1.
        bins: what they mean.
    """
    e = edges(bins)
    centres = (e[1:] + e[:-1]) / 2
    cdf = np.cumsum(pdf, axis=1)
    k = (cdf < 0.5 * cdf[:, -1:]).sum(axis=1)  # the bin in which the CDF passes 1/2
    rows = np.arange(len(pdf))
    inside = (0.5 * cdf[:, -1] - (cdf[rows, k] - pdf[rows, k])) / pdf[rows, k]
    return {
        "zmode": centres[pdf.argmax(axis=1)],
        "zmean": pdf @ centres,
        "zmedian": e[k] + inside * bins.width,
    }


def _common_bins(networks: Sequence[Network]) -> RedshiftBins:
    if not networks:
        raise BadInput("no network to predict with: give at least one run folder")
    first = networks[0]
    for network in networks[1:]:
        if network.bins != first.bins:
            raise BadInput(
                f"runs '{first.name}' and '{network.name}' have different redshift bins "
                f"({first.bins} and {network.bins}): PDFs cannot be averaged"
            )
    return first.bins


def _create(file: h5py.File, rows: int, bins: RedshiftBins) -> None:
    file["meta/pdf_name"] = np.array([b"hist"])
    file["meta/pdf_version"] = np.array([0])
    file["meta/bins"] = edges(bins)[None]
    file.create_dataset("data/pdfs", (rows, bins.n), np.float32)
    for name, dtype in ANCIL.items():
        file.create_dataset(f"ancil/{name}", (rows,), dtype)
