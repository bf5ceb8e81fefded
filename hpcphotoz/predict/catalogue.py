"""Predicts the redshift PDFs of a catalogue, batch by batch: memory does not grow with the catalogue.

Attributes of the file: `runs`; `dataset`, a JSON text with the dataset's name, its manifest's SHA-256 and the
subset; `prediction`, one with what was averaged and how PDFs were calibrated.

Ranks share the catalogue: each writes its slice as a file of the same layout into a temporary folder beside
the output, and rank 0, which writes its own into the output, appends the others.
"""

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from hpcphotoz.atomic import atomic_write, check_output_file
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import check_batch, divide_rows, read_batches, to_tensors
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.predict.calibration import Calibration
from hpcphotoz.predict.columns import ANCIL, FLAG, UNITS, point_estimates
from hpcphotoz.predict.pdfs import average_pdfs
from hpcphotoz.predict.qp_file import PdfForm, QpWriter, holds_pdfs
from hpcphotoz.predict.robustness_flag import check_flag_below, robustness_flag
from hpcphotoz.ranks import ALONE, Ranks
from hpcphotoz.sources.tables.write_table import check_table_name, writing_table


def predict(
    networks: Sequence[RedshiftNetwork],
    data: Path,
    out: Path,
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    tta: bool = False,
    calibration: Calibration | None = None,
    form: PdfForm = "hist",
    points: Path | None = None,
    flag_below: float | None = None,
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
        calibration: of the mean PDF, with the weights of the networks; None: equal weights and no change.
        form: "hist", densities that are constant within a bin, or "interp", linear between their centres.
        points: also write the columns of `ancil` as a table, named *.fits, *.parquet or *.csv; a file that
            exists is refused.
        flag_below: also search for each object's minimal epsilon up to this many sky sigmas, see
            `robustness_flag`; costs up to some tens of PGD attacks.
        subset: which objects of the dataset.
        ranks: ranks that share the objects, and a file system; all call this, with the same arguments. The
            file has the same content as that of one process.

    Returns:
        Number of objects, on all ranks.

    Raises:
        BadInput: no network, different bins, other bands or stamp size than the dataset's, an output that is
            not finite, an unreadable dataset, an empty subset, an option out of range, or a file cannot be
            written.
    """
    check_output_path(out)
    if points is not None:
        check_points_path(points)
    check_flag_below(flag_below)
    manifest = read_manifest(data)
    bins = common_bins(networks)
    for network in networks:
        check_bands_and_stamp(network, manifest.header, data)
    check_batch(batch)
    part = divide_rows(data, manifest, batch, subset, ranks=ranks)
    turns = 8 if tta else 1
    forwards = [DatasetForward(network, batch, part.objects * turns) for network in networks]
    calibrated = calibration or Calibration()
    facts = {"name": data.resolve().name, "manifest_sha256": manifest.sha256, "subset": subset.record()}
    runs = [f"{network.name} step {network.step}" for network in networks]
    how = {"tta": tta, "weights": calibrated.weights or [1 / len(runs)] * len(runs), "flag_below": flag_below}
    how |= {"temperature": calibrated.temperature, "pit": calibrated.pit}
    attributes = {"runs": runs, "dataset": json.dumps(facts), "prediction": json.dumps(how)}
    columns = {**ANCIL, **(FLAG if flag_below else {})}
    with ExitStack() as stack:
        # The table appears after the PDFs: were it there first, the same command would refuse it.
        table = stack.enter_context(_table(points, ranks))
        folder = stack.enter_context(_parts_folder(out, ranks))
        mine, rows = (_part(folder, ranks.rank), part.objects) if ranks.rank else (out, part.total)
        with QpWriter(mine, rows, bins, columns, attributes, form) as output:
            done = 0
            batches = read_batches(data, manifest, batch, "predicting", subset=subset, share=part)
            for stamps in ranks.until_stopped(batches):
                tensor = to_tensors(stamps, device)
                inputs = tensor["images"], tensor["ebv"], tensor["object_id"]
                weights = calibrated.weights
                pdf = average_pdfs(networks, *inputs, tta=tta, forwards=forwards, weights=weights)
                p = calibrated(pdf.double().cpu().numpy())
                names = {"id": stamps.object_id, "redshift": stamps.z_spec}
                flags = robustness_flag(networks, tensor, flag_below) if flag_below else {}
                output.write_rows(done, p, {**vars(stamps), **names, **point_estimates(p, bins), **flags})
                done += len(stamps)
            firsts = ranks.allgather(part.first) if ranks.rank == 0 else []
            for rank, first in list(enumerate(firsts))[1:]:
                output.append_part(first, _part(folder, rank))
            if points is not None and table is not None:
                _write_points(table, points, output, columns, part.total)
        if ranks.rank:
            ranks.allgather(part.first)  # the part is complete
        ranks.allgather(None)  # rank 0 has the output
    return part.total


def check_output_path(out: Path) -> None:
    """Check that PDFs can be written at a path and that qp can read a file of that name; create nothing."""
    if out.is_dir():
        raise BadInput(f"{out}: is a folder: give the name of a file, such as {out / 'pz.hdf5'}")
    if out.exists() and not holds_pdfs(out):
        raise BadInput(f"{out}: exists and holds no PDFs: delete it, or choose another name")
    if out.suffix != ".hdf5":  # to qp, .h5, .hf5 and .hd5 are other formats
        name = out.with_suffix(".hdf5").name
        raise BadInput(f"{out}: qp reads PDFs only from files whose names end in .hdf5: name it {name}")
    check_output_file(out)


def check_points_path(points: Path) -> None:
    """Check that a table can be written at a path where there is no file yet; create nothing."""
    check_table_name(points)
    if points.exists():  # perhaps the catalogue of someone who took the option for an input
        raise BadInput(f"{points}: exists: delete it, or choose another name")
    check_output_file(points)


def common_bins(networks: Sequence[RedshiftNetwork]) -> RedshiftBins:
    """The redshift bins of networks; raises BadInput for none, or for different ones."""
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


@contextmanager
def _table(points: Path | None, ranks: Ranks) -> Iterator[Path | None]:
    """Context with the temporary file of the table, on rank 0; None: no table is written here."""
    if points is None or ranks.rank:
        yield None
        return
    with atomic_write(points) as temporary:
        yield temporary


def _write_points(
    temporary: Path, points: Path, output: QpWriter, columns: Mapping[str, Any], rows: int
) -> None:
    names = {name: dtype for name, dtype in columns.items() if name not in ("id", "redshift")}
    try:
        with writing_table(temporary, points.suffix, names, UNITS, rows) as table:
            for found in output.read_columns(names):
                table.write(found)
    except OSError as error:
        raise BadInput(f"{points}: cannot be written: {error.strerror or error}") from None


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
