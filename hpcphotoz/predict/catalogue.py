"""Predicts the redshift PDFs of a catalogue, batch by batch: memory does not grow with the catalogue.

Attributes of the file: `runs`; `dataset`, a JSON text with the dataset's name, its manifest's SHA-256 and the
subset; `prediction`, one with what was averaged and how PDFs were calibrated.

What is complete of a prediction that was interrupted is kept beside the output (`partial.py`), and the same
call goes on from there, on any number of ranks. Ranks share the catalogue; at the end rank 0 joins the
files of rows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcphotoz.atomic import atomic_write, check_output_file
from hpcphotoz.data.format.manifest import Manifest, read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import BatchTable, batch_table, check_batch, to_tensors
from hpcphotoz.evaluation.inference import DatasetForward, check_precision
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.predict.columns import ANCIL, FLAG, UNITS, point_estimates
from hpcphotoz.predict.partial import PartWriter, complete_rows, rows_of_ranks, unfinished
from hpcphotoz.predict.pdfs import average_pdfs
from hpcphotoz.predict.qp_file import PDFS, PdfForm, QpWriter, densities, holds_pdfs
from hpcphotoz.predict.robustness_flag import check_flag_below, robustness_flag
from hpcphotoz.progress import track
from hpcphotoz.ranks import ALONE, Ranks
from hpcphotoz.sources.tables.write_table import check_table_name, writing_table
from hpcphotoz.training.optimisation.origin import weights_sha256


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
    precision: str = "fp32",
    subset: Subset = ALL_OBJECTS,
    ranks: Ranks = ALONE,
) -> int:
    """Write the PDF of every object of a dataset; the PDFs of several networks are averaged.

    The file appears under its name only when it is complete. What an interrupted call has completed stays in
    the folder `out`.partial, and the same call goes on from there.

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
        precision: of the networks' passes: "fp32", "tf32" or "bf16". Of 1,024 simulated galaxies bf16 moved
            <z> by 0.2 to 0.7 % of the PDF's sigma (medians of three networks), and by at most 5 %.
        subset: which objects of the dataset.
        ranks: ranks that share the objects, and a file system; all call this, with the same arguments. The
            file has the same content as that of one process.

    Returns:
        Number of objects, on all ranks.

    Raises:
        BadInput: no network, different bins, other bands or stamp size than the dataset's, an output that is
            not finite, an unreadable dataset, an empty subset, an option out of range, a file cannot be
            written, or an unfinished prediction of something else.
    """
    check_output_path(out)
    if points is not None:
        check_points_path(points)
    check_flag_below(flag_below)
    check_precision(precision)
    manifest = read_manifest(data)
    bins = common_bins(networks)
    for network in networks:
        check_bands_and_stamp(network, manifest.header, data)
    check_batch(batch)
    table = ranks.on_first_rank(lambda: batch_table(data, manifest, batch, subset))
    calibrated = calibration or Calibration()
    columns = {**ANCIL, **(FLAG if flag_below else {})}
    facts = {"name": data.resolve().name, "manifest_sha256": manifest.sha256, "subset": subset.record()}
    runs = [f"{network.name} step {network.step}" for network in networks]
    weights = list(calibrated.weights) or [1 / len(runs)] * len(runs)
    how = {"tta": tta, "weights": weights, "flag_below": flag_below, "precision": precision}
    how |= {"temperature": calibrated.temperature, "pit": list(calibrated.pit)}
    plan = {
        "runs": [weights_sha256(network.module.state_dict()) for network in networks],
        "dataset": {**facts, "batch": batch},
        **how,
        "pdf": form,
    }
    with unfinished(out, plan, ranks) as folder:
        parts = ranks.on_first_rank(lambda: complete_rows(folder))
        mine = rows_of_ranks(table, parts, ranks.size)[ranks.rank]
        objects = sum(int(table.objects[run.start : run.stop].sum()) for run in mine)
        turns = 8 if tta else 1
        forwards = [DatasetForward(one, batch, objects * turns, precision) for one in networks]
        total = int(table.objects.sum())
        done = 0 if ranks.size > 1 else total - objects
        what = f"predicting (objects{' of this rank' if ranks.size > 1 else ''})"
        batches = _read(data, manifest, batch, subset, table, mine)
        tracked = track(batches, what, total=done + objects, weight=lambda one: len(one[2]), done=done)
        with PartWriter(folder, table, out) as output:
            for run, number, stamps in ranks.until_stopped(tracked):
                tensor = to_tensors(stamps, device)
                inputs = tensor["images"], tensor["ebv"], tensor["object_id"]
                mean = average_pdfs(networks, *inputs, tta=tta, forwards=forwards, weights=calibrated.weights)
                pdf = calibrated(mean.double().cpu().numpy())
                names = {"id": stamps.object_id, "redshift": stamps.z_spec}
                flags = robustness_flag(networks, tensor, flag_below) if flag_below else {}
                values = {**vars(stamps), **names, **point_estimates(pdf, bins), **flags}
                found = {name: np.asarray(values[name], dtype) for name, dtype in columns.items()}
                output.add(run, number, {PDFS: densities(pdf, bins, form), **found})
        ranks.allgather(None)  # the rows of all ranks are complete
        if ranks.rank == 0:
            attributes = {"runs": runs, "dataset": json.dumps(facts), "prediction": json.dumps(how)}
            with (
                _table_file(points) as temporary,
                QpWriter(out, total, bins, columns, attributes, form) as qp,
            ):
                before = np.cumsum(table.objects) - table.objects
                for part in complete_rows(folder):
                    qp.append_part(int(before[np.searchsorted(table.first, part.rows.start)]), part.path)
                if points is not None and temporary is not None:
                    _write_points(temporary, points, qp, columns, total)
        ranks.allgather(None)  # rank 0 has the output
    return total


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


def _read(
    data: Path,
    manifest: Manifest,
    batch: int,
    subset: Subset,
    table: BatchTable,
    runs: Sequence[range],
) -> Iterator[tuple[range, int, Stamps]]:
    """Read runs of batches: each batch with an object, with its run and its number."""
    chosen = subset if subset.columns else None
    for run in runs:
        rows = range(int(table.first[run.start]), int(table.stop[run.stop - 1]))
        numbers = [number for number in run if table.objects[number]]
        found = read_rows(data, manifest, batch, chosen, rows=rows)
        for number, stamps in zip(numbers, found, strict=True):
            yield run, number, stamps


@contextmanager
def _table_file(points: Path | None) -> Iterator[Path | None]:
    """Context with the temporary file of the table, which appears after the PDFs; None: there is none.

    Were it there before them, the same command would refuse it.
    """
    if points is None:
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
