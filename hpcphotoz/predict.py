"""Writes redshift PDFs for a catalogue, in the file format that qp and RAIL read.

Layout of the file (qp's `hist`): group `meta` with `pdf_name`, `pdf_version` and `bins` (1, n + 1); group
`data` with `pdfs` (N, n), probability densities; group `ancil` with arrays of length N. Attributes of
the file: `runs`, and `dataset`, a JSON text with the dataset's name, its manifest's SHA-256 and the subset.
The file is written by h5py alone, batch by batch: memory does not grow with the catalogue.

Ranks share the catalogue: each writes its slice as a file of this layout into a temporary folder beside the
output, and rank 0, which writes its own into the output, appends the others.
"""

import json
import secrets
import shutil
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
from hpcphotoz.evaluation.batches import check_batch, divide_rows, read_batches, to_tensors
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp, compute_pdfs
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.kernels import reference
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.ranks import ALONE, Ranks

Floats = npt.NDArray[np.float64]

_COPIED_ROWS = 1 << 14  # of a rank's file at a time
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
    ranks: Ranks = ALONE,
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
        ranks: ranks that share the objects, and a file system; all call this, with the same arguments. The
            file has the same content as that of one process.

    Returns:
        Number of objects, on all ranks.

    Raises:
        BadInput: no network, different bins, other bands or stamp size than the dataset's, an output that is
            not finite, an unreadable dataset, an empty subset, or `out` cannot be written.
    """
    check_output_path(out)
    manifest = read_manifest(data)
    bins = _common_bins(networks)
    for network in networks:
        check_bands_and_stamp(network, manifest.header, data)
    check_batch(batch)
    part = divide_rows(data, manifest, batch, subset, ranks=ranks)
    turns = 8 if tta else 1
    forwards = [DatasetForward(network, batch, part.objects * turns) for network in networks]
    facts = {"name": data.resolve().name, "manifest_sha256": manifest.sha256, "subset": subset.record()}
    runs = [f"{network.name} step {network.step}" for network in networks]
    attributes = {"runs": runs, "dataset": json.dumps(facts)}
    with _parts_folder(out, ranks) as folder:
        mine, rows = (_part(folder, ranks.rank), part.objects) if ranks.rank else (out, part.total)
        with _QpWriter(mine, rows, bins, attributes) as output:
            done = 0
            batches = read_batches(data, manifest, batch, "predicting", subset=subset, share=part)
            for stamps in ranks.until_stopped(batches):
                tensor = to_tensors(stamps, device)
                inputs = tensor["images"], tensor["ebv"], tensor["object_id"]
                pdf = average_pdfs(networks, *inputs, tta=tta, forwards=forwards)
                p = pdf.double().cpu().numpy()
                names = {"id": stamps.object_id, "redshift": stamps.z_spec}
                columns = {**vars(stamps), **names, **point_estimates(p, bins)}
                output.write_rows(done, p / bins.width, columns)
                done += len(stamps)
            firsts = ranks.allgather(part.first) if ranks.rank == 0 else []
            for rank, first in list(enumerate(firsts))[1:]:
                output.append_part(first, _part(folder, rank))
        if ranks.rank:
            ranks.allgather(part.first)  # the part is complete
        ranks.allgather(None)  # rank 0 has the output
    return part.total


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


def check_output_path(out: Path) -> None:
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

    def append_part(self, first: int, part: Path) -> None:
        """Copy the rows of a rank's file, from row `first` on, and delete the file."""
        with _reading(part), h5py.File(part, "r") as file:
            names = ["data/pdfs", *(f"ancil/{name}" for name in ANCIL)]
            for start in range(0, len(file[names[0]]), _COPIED_ROWS):
                found = {name: file[name][start : start + _COPIED_ROWS] for name in names}
                with _writing(self._out):
                    for name, values in found.items():
                        self._file[name][first + start : first + start + len(values)] = values
        part.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        with _writing(self._out):
            self._stack.__exit__(*error)


@contextmanager
def _parts_folder(out: Path, ranks: Ranks) -> Iterator[Path]:
    """Context with a temporary folder beside the output for the files of the ranks; alone, that of `out`."""
    if ranks.size == 1:
        yield out.parent
        return

    own = out.with_name(f"{out.name}.{secrets.token_hex(8)}.tmp")  # named first: a signal can come any time

    def make() -> Path:
        try:
            own.mkdir(mode=0o700)
        except OSError as error:
            raise BadInput(f"{out}: cannot be written: {error.strerror}") from None
        return own

    try:
        yield ranks.on_first_rank(make)
    finally:
        if ranks.rank == 0:
            shutil.rmtree(own, ignore_errors=True)


def _part(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.hdf5"


@contextmanager
def _reading(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = " ".join(str(error).split())
        raise BadInput(f"{part}: cannot be read ({said}): all ranks need the same file system") from None


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        raise BadInput(f"{out}: cannot be written: {' '.join(str(error).split())}") from None
