"""Writes redshift PDFs for a catalogue, in the file format that qp and RAIL read.

Layout of the file (qp's `hist`): group `meta` with `pdf_name`, `pdf_version` and `bins` (1, n + 1); group
`data` with `pdfs` (N, n), probability densities; group `ancil` with arrays of length N. Attributes of
the file: `runs`, and `dataset`, a JSON text with the dataset's name, its manifest's SHA-256 and the subset.
The file is written by h5py alone, batch by batch: memory does not grow with the catalogue.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.atomic import atomic_write, check_output_file
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import check_batch, count_subset_objects, read_batches, to_tensors
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp, compute_pdfs
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
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
    "id": np.int64,  # object_id and z_spec again, under the names that RAIL's estimators give
    "redshift": np.float64,
}


def predict(
    networks: Sequence[RedshiftNetwork],
    data: Path,
    out: Path,
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    tta: bool = False,
    subset: Subset = ALL_OBJECTS,
) -> int:
    """Write the PDF of every object of a dataset; the PDFs of several networks are averaged.

    The file appears under its name only when it is complete.

    Args:
        networks: at least one; all with the same redshift bins and the dataset's bands.
        data: dataset folder; z_spec may be unknown.
        out: HDF5 file to write; qp needs a name that ends in .hdf5. An existing file is replaced if it holds
            PDFs, and refused otherwise.
        batch: batch size.
        device: device of the networks.
        tta: average over the eight flips and right-angle rotations of each image; costs eight times as much.
        subset: which objects of the dataset.

    Returns:
        Number of objects.

    Raises:
        BadInput: no network, different bins, other bands or stamp size than the dataset's, an output that is
            not finite, an unreadable dataset, an empty subset, or `out` cannot be written.
    """
    _check_output_path(out)
    manifest = read_manifest(data)
    bins = _common_bins(networks)
    for network in networks:
        check_bands_and_stamp(network, manifest.header, data)
    check_batch(batch)
    rows, done = count_subset_objects(data, manifest, subset), 0
    turns = 8 if tta else 1
    forwards = [DatasetForward(network, batch, rows * turns) for network in networks]
    facts = {"name": data.resolve().name, "manifest_sha256": manifest.sha256, "subset": subset.record()}
    runs = [f"{network.name} step {network.step}" for network in networks]
    with _QpWriter(out, rows, bins, {"runs": runs, "dataset": json.dumps(facts)}) as output:
        for stamps in read_batches(data, manifest, batch, "predicting", subset=subset):
            tensor = to_tensors(stamps, device)
            inputs = tensor["images"], tensor["ebv"], tensor["object_id"]
            pdf = average_pdfs(networks, *inputs, tta=tta, forwards=forwards)
            p = pdf.double().cpu().numpy()
            names = {"id": stamps.object_id, "redshift": stamps.z_spec}
            output.write_rows(done, p / bins.width, {**vars(stamps), **names, **point_estimates(p, bins)})
            done += len(stamps)
    return done


def average_pdfs(
    networks: Sequence[RedshiftNetwork],
    images: Tensor,
    ebv: Tensor,
    object_id: Tensor,
    *,
    tta: bool = False,
    forwards: Sequence[DatasetForward | None] | None = None,
) -> Tensor:
    """The mean PDF over networks, and over the symmetries of the square if `tta`; (N, bins) float32.

    Args:
        networks: with the same bins.
        images: (N, B, H, W) float32, nMgy.
        ebv: (N,) float32, mag.
        object_id: (N,) int64.
        tta: average over the eight flips and right-angle rotations.
        forwards: compute the logits of each network; None: the modules compute them.
    """
    total = torch.zeros(len(images), networks[0].bins.n, device=images.device)
    codes = range(8 if tta else 1)
    for code in codes:
        turned = reference.dihedral(images, torch.full_like(object_id, code)) if code else images
        for network, forward in zip(networks, forwards or [None] * len(networks), strict=True):
            total += compute_pdfs(network, turned, ebv, object_id, forward)
    return total / (len(codes) * len(networks))


def point_estimates(pdf: Floats, bins: RedshiftBins) -> dict[str, Floats]:
    """`zmode`, `zmean` and `zmedian` of PDFs.

    Args:
        pdf: (N, n) probability per bin, rows that sum to 1.
        bins: the redshift bins.
    """
    found = RedshiftPdf(pdf, bins)
    return {"zmode": found.mode, "zmean": found.mean, "zmedian": found.median}


def _check_output_path(out: Path) -> None:
    """Check that PDFs can be written at a path and that qp can read a file of that name; create nothing."""
    if out.is_dir():
        raise BadInput(f"{out}: is a folder: give the name of a file, such as {out / 'pz.hdf5'}")
    if out.exists() and not _holds_pdfs(out):
        raise BadInput(f"{out}: exists and holds no PDFs: delete it, or choose another name")
    if out.suffix != ".hdf5":  # to qp, .h5, .hf5 and .hd5 are other formats
        name = out.with_suffix(".hdf5").name
        raise BadInput(f"{out}: qp reads PDFs only from files whose names end in .hdf5: name it {name}")
    check_output_file(out)


def _holds_pdfs(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return "meta/pdf_name" in file
    except OSError:
        return False


def _common_bins(networks: Sequence[RedshiftNetwork]) -> RedshiftBins:
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


class _QpWriter:
    """Writes the qp file; it appears under its name when complete.

    Only errors of this file are reported as "cannot be written", not those of reading or of the network.
    """

    def __init__(self, out: Path, rows: int, bins: RedshiftBins, attributes: Mapping[str, Any]) -> None:
        with _writing(out), ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(out))
            self._file = stack.enter_context(h5py.File(temporary, "w"))
            self._file.attrs.update(attributes)
            self._file["meta/pdf_name"] = np.array([b"hist"])
            self._file["meta/pdf_version"] = np.array([0])
            self._file["meta/bins"] = bins.edges()[None]
            self._file.create_dataset("data/pdfs", (rows, bins.n), np.float32)
            for name, dtype in ANCIL.items():
                self._file.create_dataset(f"ancil/{name}", (rows,), dtype)
            self._out, self._stack = out, stack.pop_all()

    def write_rows(self, first: int, density: Floats, points: Mapping[str, Any]) -> None:
        """Write (n, bins) densities and the columns of `ANCIL`, from row `first` on."""
        rows = slice(first, first + len(density))
        with _writing(self._out):
            self._file["data/pdfs"][rows] = density
            for name in ANCIL:
                self._file["ancil"][name][rows] = points[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        with _writing(self._out):
            self._stack.__exit__(*error)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        raise BadInput(f"{out}: cannot be written: {' '.join(str(error).split())}") from None
